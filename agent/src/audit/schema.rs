//! The JSON Schema of a line, made from the types that write it.

use namegate_egress_bpf::abi::{DropReason, Pass};
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator, json_schema};

use super::{Line, SCHEMA};

/// The schema of a line.
pub fn schema() -> Schema {
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut schema = generator.into_root_schema_for::<Line<'_>>();
    schema.insert("$id".to_owned(), format!("https://namegate.dev/schemas/audit/v{SCHEMA}").into());
    schema.insert("title".to_owned(), "Namegate audit log".into());
    schema
}

/// What a flow's reason can be.
pub(super) fn flow_reasons(_: &mut SchemaGenerator) -> Schema {
    let passes = Pass::ALL.iter().map(|pass| pass.as_str());
    let drops = DropReason::ALL.iter().map(|reason| reason.as_str());
    let reasons: Vec<&str> = passes.chain(drops).collect();
    json_schema!({"type": "string", "enum": reasons})
}
