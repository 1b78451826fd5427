//! Policy tables to map rows.
//!
//! [`TableRows`] is one policy table as the rows that the kernel looks up; [`RowChanges`] is what
//! can change in one that is in force; [`NameBook`] is what one identity learned, as rows that stay
//! valid while the table under them is replaced. Pure: nothing here knows how a map is written.

mod cidr;
mod names;
mod ports;
mod prefixes;
mod rows;

pub use names::{ClassesFull, NAME_CLASSES_MAX, NameBook, NameWrites, Retable};
pub use prefixes::{CidrRow, KnownPrefixes, Prefixes};
pub use rows::{RowChanges, TableRows};

use namegate_policy::rule;

use crate::abi::Direction;

impl From<rule::Direction> for Direction {
    fn from(direction: rule::Direction) -> Self {
        match direction {
            rule::Direction::Egress => Self::Egress,
            rule::Direction::Ingress => Self::Ingress,
        }
    }
}

impl From<Direction> for rule::Direction {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Egress => Self::Egress,
            Direction::Ingress => Self::Ingress,
        }
    }
}
