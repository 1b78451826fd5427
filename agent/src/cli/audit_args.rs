use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;

use crate::audit::{AuditConfig, Bounds, Choice, Keep, PolicyChoice, SyslogAddress};

/// What is logged of decisions, and where.
#[derive(Debug, Args)]
#[command(next_help_heading = "Audit log")]
pub struct AuditArgs {
    /// Write one JSON object per decision to this file; `-` for standard output
    #[arg(long, env = "NAMEGATE_AUDIT_LOG", value_name = "FILE|-")]
    pub audit_log: Option<PathBuf>,
    /// Size at which the file becomes FILE.1 and another is begun, at least 1Mi
    #[arg(long, env = "NAMEGATE_AUDIT_LOG_MAX_SIZE", value_name = "SIZE", default_value = "100Mi", value_parser = size)]
    pub audit_log_max_size: u64,
    /// How many earlier files are kept
    #[arg(long, env = "NAMEGATE_AUDIT_LOG_KEEP", value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub audit_log_keep: u32,
    /// Send each as a message to a syslog daemon (RFC 5424, facility local0)
    #[arg(long, env = "NAMEGATE_AUDIT_SYSLOG", value_name = "unix:PATH|udp:HOST:PORT")]
    pub audit_syslog: Option<SyslogAddress>,
    /// Which decisions: all, those that refuse, or none but what --audit-policy says
    #[arg(long, env = "NAMEGATE_AUDIT_RECORDS", value_enum, default_value = "all")]
    pub audit_records: Keep,
    /// Which decisions of one policy, whatever --audit-records says; may be repeated
    #[arg(
        long = "audit-policy",
        env = "NAMEGATE_AUDIT_POLICIES",
        value_name = "[NAMESPACE/]NAME=all|denied|none",
        value_delimiter = ','
    )]
    pub audit_policies: Vec<PolicyChoice>,
    /// Records a second of each pod, of refusals and of the rest each; what is more is counted. 0
    /// sets no bound
    #[arg(long, env = "NAMEGATE_AUDIT_RATE", value_name = "NUMBER", default_value_t = 1_000)]
    pub audit_rate: u32,
    /// Of what is allowed, log one decision of each pod in so many
    #[arg(long, env = "NAMEGATE_AUDIT_SAMPLE", value_name = "NUMBER", default_value = "1")]
    pub audit_sample: NonZeroU32,
}

impl AuditArgs {
    /// What the options say.
    pub fn config(&self) -> AuditConfig {
        AuditConfig {
            file: self.audit_log.clone(),
            file_max_bytes: self.audit_log_max_size,
            file_keep: self.audit_log_keep,
            syslog: self.audit_syslog.clone(),
            choice: Choice {
                by_policy: self.audit_policies.clone(),
                otherwise: self.audit_records,
            },
            bounds: Bounds {
                rate: NonZeroU32::new(self.audit_rate),
                sample: Some(self.audit_sample).filter(|sample| sample.get() > 1),
            },
        }
    }
}

/// Reads `1048576`, `100Mi` or `2Gi`; less than a mebibyte would not hold a batch of lines.
fn size(text: &str) -> Result<u64, String> {
    let form = || "expected a size of at least 1Mi, such as 100Mi or 2Gi".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| form())?;
    let each = match unit {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return Err(form()),
    };
    number.checked_mul(each).filter(|size| *size >= 1 << 20).ok_or_else(form)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        let cases = [
            ("1Mi", Some(1 << 20)),
            ("1048576", Some(1 << 20)),
            ("2048Ki", Some(2 << 20)),
            ("2Gi", Some(2 << 30)),
            ("1", None),
            ("0Mi", None),
            ("1M", None),
            ("Mi", None),
            ("-1Mi", None),
            ("99999999999Gi", None),
        ];
        for (text, expected) in cases {
            assert_eq!(size(text).ok(), expected, "{text:?}");
        }
    }
}
