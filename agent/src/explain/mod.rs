//! What would become of a flow or a lookup, asked of three engines that have little in common.
//!
//! [`Engine::Oracle`] decides straight from the objects. The other two take the way of the agent:
//! its state, its order of writes, its rows, and then the verdict function over maps in memory
//! ([`Simulated`]) or the loaded kernel program by test runs ([`TestRun`]). [`LiveEndpoint`] asks the
//! verdict function about the tables that a running agent has in force. Nothing is attached and
//! nothing is pinned. Reads no clock: time is an argument.

mod engine;
mod frames;
mod live;
mod simulated;
mod test_run;
mod world;

pub use engine::{Engine, EngineError, EngineKind, Plain};
pub use live::{Considered, LiveEndpoint, LiveRemote, LiveVerdict};
pub use simulated::Simulated;
pub use test_run::TestRun;
pub use world::{Bench, Crossing, Ruled, World};
