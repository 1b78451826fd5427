//! Policy tables to map rows.
//!
//! [`TableRows`] is one policy table as the rows that the kernel looks up, with a diff between two
//! versions of it; [`NameBook`] is what one identity learned, as rows that stay valid while the
//! table under them is replaced. Pure: nothing here knows how a map is written.

mod cidr;
mod names;
mod ports;
mod rows;

pub use names::{ClassesFull, NAME_CLASSES_MAX, NameBook, NameWrites, Retable};
pub use rows::{CidrRow, RowChanges, TableRows};
