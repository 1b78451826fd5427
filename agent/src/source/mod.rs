//! Where objects come from: the same differences whoever tells them.

mod directory;
mod file;
mod follow;
mod plain;
pub mod position;
mod problem;
#[cfg(test)]
mod tests;
pub mod yaml;

pub use directory::{Changes, Directory, Site, Version};
pub use follow::follow;
pub use plain::plain;
pub use problem::{Problem, ProblemKind};
