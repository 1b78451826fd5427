//! The order of writes, watched from outside.
