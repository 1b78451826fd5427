//! Where objects come from: the same differences whoever tells them.

mod directory;
mod follow;
#[cfg(test)]
mod tests;
pub mod yaml;

pub use directory::{Changes, Directory, Problem};
pub use follow::follow;
