//! What policies mean: the numbered lines of the semantics as cases, and tables against the oracle.

#![expect(clippy::unwrap_used, reason = "a test ends where an assumption fails")]

mod cases;
mod citations;
mod corpus;
mod engine;
mod mutations;
mod random;
mod strictness;
