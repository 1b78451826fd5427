//! Running the loaded program on a frame that is on no wire (`BPF_PROG_TEST_RUN`).

use std::time::Duration;

use aya::TestRun as _;
use aya::programs::TestRunOptions;

use super::error::DatapathError;
use super::{Datapath, load};
use crate::abi::Direction;

/// Where `struct __sk_buff` has its `ingress_ifindex`.
const INGRESS_IFINDEX: usize = 36;

/// What the kernel would do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RanVerdict {
    /// Go on.
    Next,
    /// Drop.
    Drop,
    /// Hand to another interface.
    Redirect,
    /// A number that the program never returns.
    Unknown(u32),
}

/// The outcome of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// What the program returned.
    pub verdict: RanVerdict,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
    /// How long a run took, on average.
    pub duration: Duration,
}

impl Datapath {
    /// How many instructions the kernel walked to prove the program of a direction safe; of a million
    /// that it has patience for (Linux 5.16).
    pub fn verified_instructions(
        &mut self,
        direction: Direction,
    ) -> Result<Option<u32>, DatapathError> {
        let name = load::program_name(direction);
        let info = load::program(&mut self.ebpf, name)?
            .info()
            .map_err(|source| DatapathError::Run { name, source: Box::new(source) })?;
        Ok(info.verified_instruction_count())
    }

    /// Runs the program of a direction on a frame as if the node itself had made it and it crossed the
    /// loopback interface. The kernel refuses frames too short for their IP header.
    pub fn run(
        &mut self,
        direction: Direction,
        frame: &[u8],
        repeat: u32,
    ) -> Result<Ran, DatapathError> {
        self.run_received(direction, frame, 0, repeat)
    }

    /// The same for a frame that the interface of this number received; zero: none did.
    pub fn run_received(
        &mut self,
        direction: Direction,
        frame: &[u8],
        received_by: u32,
        repeat: u32,
    ) -> Result<Ran, DatapathError> {
        let name = load::program_name(direction);
        let program = load::program(&mut self.ebpf, name)?;
        let mut out = vec![0; frame.len() + 64];
        // `struct __sk_buff` as far as it is not zero.
        let mut context = [0; INGRESS_IFINDEX + 4];
        context[INGRESS_IFINDEX..].copy_from_slice(&received_by.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::default()
        };
        let result = program
            .test_run(options)
            .map_err(|source| DatapathError::Run { name, source: Box::new(source) })?;
        out.truncate(usize::try_from(result.data_size_out).unwrap_or(0));
        Ok(Ran {
            verdict: match result.return_value {
                0xffff_ffff => RanVerdict::Next,
                2 => RanVerdict::Drop,
                7 => RanVerdict::Redirect,
                other => RanVerdict::Unknown(other),
            },
            frame: out,
            duration: result.duration,
        })
    }
}
