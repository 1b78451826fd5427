//! The three engines behind one face.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use namegate_policy::name::DnsName;
use namegate_policy::object::Object;
use namegate_policy::oracle::{Cause, Circumstances, Flow, Lesson, LookupRuling, Oracle, Ruling};
use namegate_policy::resource::{Pod, PodRef};
use namegate_policy::rule::Direction;
use namegate_policy::time::Timestamp;

use super::{Ruled, Simulated, TestRun, World};

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineKind {
    /// Straight from the objects, in the plainest way
    Oracle,
    /// The datapath's verdict function over the rows that the agent would write
    Host,
    /// The kernel program itself over those rows, by test runs; needs root
    Kernel,
}

/// Something that decides about flows and lookups.
#[derive(Debug)]
pub enum Engine {
    /// See [`EngineKind::Oracle`].
    Oracle(Box<Plain>),
    /// See [`EngineKind::Host`].
    Host(Box<World<Simulated>>),
    /// See [`EngineKind::Kernel`].
    Kernel(Box<World<TestRun>>),
}

/// What the oracle is asked about.
#[derive(Debug, Default)]
pub struct Plain {
    objects: Vec<Object>,
    circumstances: Circumstances,
    lessons: Vec<Lesson>,
    now: Timestamp,
}

/// Why an engine has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Rows were refused.
    #[error("the rules cannot be written: {}", failures.join("; "))]
    Write {
        /// Which, and why.
        failures: Vec<String>,
    },
    /// A write or a run failed.
    #[error("the datapath cannot be asked: {source}")]
    Run {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pod was given no place.
    #[error("pod {pod} has no interface here; it needs addresses of its own in status.podIPs")]
    NoPlace {
        /// The pod.
        pod: PodRef,
    },
    /// One end is IPv4, the other IPv6.
    #[error("no packet carries an IPv4 and an IPv6 address")]
    Families,
    /// The datapath wrote no record of a first packet.
    #[error("the datapath left no record of the packet")]
    NoRecord,
}

impl EngineError {
    pub(super) fn run(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Run { source: Box::new(source) }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Oracle => "oracle",
            Self::Host => "host",
            Self::Kernel => "kernel",
        })
    }
}

impl Engine {
    /// An engine without objects. The kernel's needs root.
    pub fn new(kind: EngineKind, circumstances: &Circumstances) -> Result<Self, EngineError> {
        Ok(match kind {
            EngineKind::Oracle => {
                let circumstances = circumstances.clone();
                Self::Oracle(Box::new(Plain { circumstances, ..Plain::default() }))
            }
            EngineKind::Host => {
                Self::Host(Box::new(World::new(Simulated::new(circumstances), circumstances)))
            }
            EngineKind::Kernel => {
                let bench = TestRun::new(circumstances).map_err(EngineError::run)?;
                Self::Kernel(Box::new(World::new(bench, circumstances)))
            }
        })
    }

    /// Takes objects in, into an engine that has none.
    pub fn take(&mut self, objects: &[Object]) -> Result<(), EngineError> {
        match self {
            Self::Oracle(plain) => {
                plain.objects = objects.to_vec();
                Ok(())
            }
            Self::Host(world) => world.take(objects),
            Self::Kernel(world) => world.take(objects),
        }
    }

    /// Forgets every object, all that was learned, and the time.
    pub fn leave(&mut self) -> Result<(), EngineError> {
        match self {
            Self::Oracle(plain) => {
                plain.objects.clear();
                plain.lessons.clear();
                plain.now = Timestamp::default();
                Ok(())
            }
            Self::Host(world) => world.leave(),
            Self::Kernel(world) => world.leave(),
        }
    }

    /// Puts pods under their policies: those that are judged or asked about.
    pub fn house<'p>(
        &mut self,
        pods: impl IntoIterator<Item = &'p PodRef>,
    ) -> Result<(), EngineError> {
        match self {
            Self::Oracle(_) => Ok(()),
            Self::Host(world) => world.house(pods),
            Self::Kernel(world) => world.house(pods),
        }
    }

    /// Moves time on.
    pub fn advance(&mut self, now: Timestamp) -> Result<(), EngineError> {
        match self {
            Self::Oracle(plain) => {
                plain.now = now;
                Ok(())
            }
            Self::Host(world) => world.advance(now),
            Self::Kernel(world) => world.advance(now),
        }
    }

    /// When it is.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::Oracle(plain) => plain.now,
            Self::Host(world) => world.now(),
            Self::Kernel(world) => world.now(),
        }
    }

    /// Forgets what was learned.
    pub fn forget(&mut self) -> Result<(), EngineError> {
        match self {
            Self::Oracle(plain) => {
                plain.lessons.clear();
                Ok(())
            }
            Self::Host(world) => world.forget(),
            Self::Kernel(world) => world.forget(),
        }
    }

    /// Decides whether `pod` may ask for `name`.
    pub fn ask(&self, pod: &Pod, name: &DnsName) -> LookupRuling {
        match self {
            Self::Oracle(plain) => plain.oracle(&plain.circumstances).ask(pod, name),
            Self::Host(world) => world.ask(&pod.reference, name),
            Self::Kernel(world) => world.ask(&pod.reference, name),
        }
    }

    /// Lets a pod get an answer at once; nothing is learned for a name that it may not ask for.
    pub fn teach(&mut self, pod: &Pod, lesson: &Lesson) -> Result<(), EngineError> {
        match self {
            Self::Oracle(plain) => {
                let ruling = plain.oracle(&plain.circumstances).ask(pod, &lesson.name);
                if let LookupRuling::Allowed { .. } = ruling {
                    plain.lessons.push(Lesson { at: plain.now, ..lesson.clone() });
                }
                Ok(())
            }
            Self::Host(world) => world.teach(lesson).map(drop),
            Self::Kernel(world) => world.teach(lesson).map(drop),
        }
    }

    /// Judges `flow` at the end of `subject`, which lives on the node with the addresses
    /// `own_node`.
    pub fn judge(
        &mut self,
        direction: Direction,
        subject: &Pod,
        own_node: &BTreeSet<IpAddr>,
        flow: &Flow,
    ) -> Result<Ruled, EngineError> {
        match self {
            Self::Oracle(plain) => Ok(plain.judge(direction, own_node, flow)),
            Self::Host(world) => world.judge(direction, subject, own_node, flow),
            Self::Kernel(world) => world.judge(direction, subject, own_node, flow),
        }
    }

    /// What the operator would be told of these objects.
    pub fn notices(&self) -> &[String] {
        match self {
            Self::Oracle(_) => &[],
            Self::Host(world) => world.notices(),
            Self::Kernel(world) => world.notices(),
        }
    }
}

impl Plain {
    fn oracle<'a>(&'a self, circumstances: &'a Circumstances) -> Oracle<'a> {
        let Self { objects, lessons, now, .. } = self;
        Oracle { objects, circumstances, lessons, now: *now }
    }

    fn judge(&mut self, direction: Direction, own_node: &BTreeSet<IpAddr>, flow: &Flow) -> Ruled {
        self.circumstances.own_addresses.clone_from(own_node);
        let oracle = self.oracle(&self.circumstances);
        let [egress, ingress] = oracle.views(flow);
        let view = match direction {
            Direction::Egress => egress,
            Direction::Ingress => ingress,
        };
        let Some(trace) = view.map(|view| oracle.trace(&view)) else {
            return Ruled { ruling: Ruling::OPEN, exempt: None };
        };
        let exempt = match trace.cause {
            Cause::Itself => Some("itself"),
            Cause::OwnNode => Some("own-node"),
            Cause::Lookup => Some("lookup"),
            Cause::Step(_) | Cause::Open => None,
        };
        Ruled { ruling: trace.ruling, exempt }
    }
}
