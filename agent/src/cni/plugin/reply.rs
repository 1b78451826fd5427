//! What a plugin prints: versions, or an error with its code.

use std::fmt;

use serde_json::{Value, json};

/// The versions of the specification whose commands the plugin knows.
pub(super) const SUPPORTED: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The specification's error codes, and one of the plugin's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// The configuration is of a version that the plugin does not know.
    Version = 1,
    /// A variable of the environment is missing or wrong.
    Environment = 4,
    /// Something could not be read.
    Io = 5,
    /// The configuration is no JSON.
    Decode = 6,
    /// The configuration says what it cannot say.
    Config = 7,
    /// Nothing is wrong, but it takes longer than the plugin may wait.
    TryAgain = 11,
    /// Pods cannot be started: there is no agent.
    NotAvailable = 50,
    /// The agent says no.
    Refused = 100,
}

/// Why a command is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    code: Code,
    message: String,
    details: String,
}

impl Refusal {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    pub(super) fn because(mut self, details: impl fmt::Display) -> Self {
        self.details = details.to_string();
        self
    }

    pub(super) fn with_code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// As the specification has it.
    pub(super) fn document(&self) -> Value {
        json!({
            "cniVersion": SUPPORTED[SUPPORTED.len() - 1],
            "code": self.code as u32,
            "msg": self.message,
            "details": self.details,
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

/// What `VERSION` prints.
pub(super) fn versions() -> Value {
    json!({"cniVersion": SUPPORTED[SUPPORTED.len() - 1], "supportedVersions": SUPPORTED})
}
