//! Remarks that reading the object left on it: what the standard makes of a field that it does not
//! refuse.

use super::{Code, Finding, Part, Place, Report, Review};
use crate::note::{Note, Remark};
use crate::rule::Policy;

pub(super) fn review(_: &Review<'_>, policy: &Policy, findings: &mut Vec<Finding>) {
    let mut report = Report { policy, findings };
    for Note { field, remark } in &policy.notes {
        let (code, advice) = match remark {
            Remark::UnknownMatchesNothing | Remark::UnknownDeniesEverything => (
                Code::UnknownField,
                "set a field that this version of the API has, or look for a typing error",
            ),
            Remark::NamesMatchNothing | Remark::NamesDenyEverything => (
                Code::NamesMisplaced,
                "match by networks, or move the rule to the Admin tier as Accept",
            ),
            Remark::NamedPortMatchesPodsOnly => {
                (Code::NamedPortPodsOnly, "write the number of the port for what is no pod")
            }
            // Judged over all policies of the same pods; told where the object was refused.
            Remark::LookupsDerived | Remark::StandsIn => continue,
        };
        report.say(code, Place::whole(Part::Field(field.clone())), remark.to_string(), advice);
    }
}
