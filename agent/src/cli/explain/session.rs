//! One engine, the objects it has, and the questions it is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use namegate_policy::name::DnsName;
use namegate_policy::object::Object;
use namegate_policy::oracle::{Circumstances, Flow, Lesson, LookupRuling, Oracle};
use namegate_policy::resource::{Pod, PodRef};
use namegate_policy::rule::{Direction, Protocol};

use super::answer::{Answer, EndAnswer, Target, worst};
use super::cast::{self, Cast, Complaint, End, Place, Port};
use super::reasons::Reasons;
use crate::explain::{Engine, Ruled};

/// How long given answers are good for.
const TTL: Duration = Duration::from_secs(300);

/// The addresses that names resolve to.
pub(super) type Answers = BTreeMap<DnsName, Vec<IpAddr>>;

/// A flow as somebody asks about it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) protocol: Protocol,
    pub(super) port: Option<Port>,
}

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// The verdict and who decided.
    Verdict,
    /// All that was considered, in words.
    Reasons,
}

pub(super) struct Session<'a> {
    engine: Engine,
    objects: &'a [Object],
    circumstances: Circumstances,
    cast: Cast<'a>,
    answers: &'a Answers,
    /// Who learned which name's addresses last: nobody else profits.
    learned: Option<(PodRef, DnsName)>,
    housed: BTreeSet<PodRef>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        mut engine: Engine,
        objects: &'a [Object],
        circumstances: Circumstances,
        answers: &'a Answers,
    ) -> Result<Self, Complaint> {
        engine.take(objects).map_err(|error| error.to_string())?;
        let cast = Cast::new(objects, &circumstances.own_addresses);
        Ok(Self {
            engine,
            objects,
            circumstances,
            cast,
            answers,
            learned: None,
            housed: BTreeSet::new(),
        })
    }

    pub(super) fn notices(&self) -> &[String] {
        self.engine.notices()
    }

    /// Gives places to all pods that questions are about, in one go; what is wrong with a question
    /// is said when it is answered.
    pub(super) fn prepare<'q>(
        &mut self,
        questions: impl Iterator<Item = &'q Asked>,
    ) -> Result<(), Complaint> {
        let mut pods = Vec::new();
        for Asked { from, to, protocol, port } in questions {
            let ends = [self.cast.source(from), self.cast.end(to)];
            for end in ends.into_iter().flatten() {
                let places = self.cast.places(&end, *protocol, port.as_ref()).unwrap_or_default();
                pods.extend(places.iter().filter_map(|place| self.cast.pod_at(place.address)));
                if let End::Pod(pod) = end {
                    pods.extend(pod.addresses.iter().filter_map(|at| self.cast.pod_at(*at)));
                }
            }
        }
        for address in self.answers.values().flatten() {
            pods.extend(self.cast.pod_at(*address));
        }
        self.house(&pods)
    }

    fn house(&mut self, pods: &[&Pod]) -> Result<(), Complaint> {
        let all: Vec<&PodRef> = pods.iter().map(|pod| &pod.reference).collect();
        let missing = all.into_iter().filter(|pod| !self.housed.contains(*pod));
        let missing: BTreeSet<PodRef> = missing.cloned().collect();
        if !missing.is_empty() {
            self.engine.house(&missing).map_err(|error| error.to_string())?;
            self.housed.extend(missing);
        }
        Ok(())
    }

    /// Answers a question.
    pub(super) fn answer(&mut self, asked: &Asked, detail: Detail) -> Result<Answer, Complaint> {
        let Asked { protocol, port, .. } = asked;
        cast::check_port(*protocol, port.as_ref())?;
        self.prepare(std::iter::once(asked))?;
        let source = self.cast.source(&asked.from)?;
        let destination = self.cast.end(&asked.to)?;
        let places = self.cast.places(&destination, *protocol, port.as_ref())?;
        match &destination {
            End::Name(name) => self.by_name(&source, name, asked, detail),
            End::Pod(_) | End::Address(_) | End::Service(_) => {
                self.forget()?;
                let mut answer = self.judge_all(&source, &places, asked, detail)?;
                if let End::Service(service) = destination {
                    answer.service = Some(service.reference.to_string());
                }
                Ok(answer)
            }
        }
    }

    fn by_name(
        &mut self,
        source: &End<'a>,
        name: &DnsName,
        asked: &Asked,
        detail: Detail,
    ) -> Result<Answer, Complaint> {
        let asker = match source {
            End::Pod(pod) => Some(*pod).filter(|pod| !pod.is_host_network),
            End::Address(address) => self.cast.pod_at(*address),
            End::Service(_) | End::Name(_) => None,
        };
        let given = self.answers.get(name).cloned().unwrap_or_default();
        let port = match &asked.port {
            Some(Port::Number(number)) => *number,
            Some(Port::Name(_)) | None => 0,
        };
        let places: Vec<Place> = given.iter().map(|&address| Place { address, port }).collect();
        let ruling = asker.map(|pod| self.engine.ask(pod, name));
        let mut dns = self.reasons().dns(asker, name, ruling.as_ref(), &given);
        if let (Some(pod), Some(LookupRuling::SearchMiss | LookupRuling::Refused { .. })) =
            (asker, &ruling)
        {
            let egress = EndAnswer {
                verdict: "dropped",
                reason: "name-refused",
                policies: dns.policies.clone(),
                ..EndAnswer::of_nobody(pod.reference.to_string())
            };
            return Ok(Answer {
                verdict: Some("dropped"),
                egress,
                ingress: EndAnswer::of_nobody(name.to_string()),
                dns: Some(dns),
                service: None,
                targets: Vec::new(),
            });
        }
        if given.is_empty() {
            dns.needed = Some(format!(
                "what {name} resolves to decides: give its addresses with --dns {name}=ADDRESS,..."
            ));
            let nobody = || EndAnswer::of_nobody(asked.from.clone());
            return Ok(Answer {
                verdict: None,
                egress: nobody(),
                ingress: EndAnswer::of_nobody(name.to_string()),
                dns: Some(dns),
                service: None,
                targets: Vec::new(),
            });
        }
        match asker {
            Some(pod) => self.learn(pod, name, &given)?,
            None => self.forget()?,
        }
        let mut answer = self.judge_all(source, &places, asked, detail)?;
        if dns.verdict == "audit" {
            answer.verdict = answer.verdict.map(|verdict| worst([verdict, "audit"]));
        }
        answer.dns = Some(dns);
        Ok(answer)
    }

    fn learn(&mut self, pod: &Pod, name: &DnsName, given: &[IpAddr]) -> Result<(), Complaint> {
        let wanted = (pod.reference.clone(), name.clone());
        if self.learned.as_ref() == Some(&wanted) {
            return Ok(());
        }
        self.forget()?;
        self.learned = Some(wanted);
        for address in given {
            let lesson = Lesson {
                pod: pod.reference.clone(),
                name: name.clone(),
                address: *address,
                ttl: TTL,
                at: self.engine.now(),
            };
            self.engine.teach(pod, &lesson).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn forget(&mut self) -> Result<(), Complaint> {
        match self.learned.take() {
            Some(_) => self.engine.forget().map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    fn judge_all(
        &mut self,
        source: &End<'a>,
        places: &[Place],
        asked: &Asked,
        detail: Detail,
    ) -> Result<Answer, Complaint> {
        let sources = match source {
            End::Pod(pod) => pod.addresses.clone(),
            End::Address(address) => vec![*address],
            End::Service(_) | End::Name(_) => Vec::new(),
        };
        let mut targets = Vec::new();
        for place in places {
            let same = |one: &&IpAddr| one.is_ipv4() == place.address.is_ipv4();
            let Some(source) = sources.iter().find(same) else { continue };
            let protocol = match (asked.protocol, place.address) {
                (Protocol::Icmp | Protocol::Icmpv6, IpAddr::V4(_)) => Protocol::Icmp,
                (Protocol::Icmp | Protocol::Icmpv6, IpAddr::V6(_)) => Protocol::Icmpv6,
                (other @ (Protocol::Tcp | Protocol::Udp | Protocol::Sctp), _) => other,
            };
            let port = match protocol {
                Protocol::Icmp => 8,
                Protocol::Icmpv6 => 128,
                Protocol::Tcp | Protocol::Udp | Protocol::Sctp => place.port,
            };
            let destination = place.address;
            let flow = Flow { source: *source, destination, protocol, port };
            targets.push(self.judge(&flow, detail)?);
        }
        let Some(first) = targets.first() else {
            return Err(format!(
                "{} and {} have no addresses of one family: IPv4 and IPv6 do not mix",
                asked.from, asked.to
            ));
        };
        let verdict = worst(targets.iter().map(|target| target.verdict));
        let deciding = targets.iter().find(|one| one.verdict == verdict).unwrap_or(first);
        let bare = |end: &EndAnswer| EndAnswer {
            considered: Vec::new(),
            not_selecting: Vec::new(),
            ..end.clone()
        };
        let (egress, ingress) = (bare(&deciding.egress), bare(&deciding.ingress));
        if detail == Detail::Verdict && targets.len() == 1 {
            targets.clear();
        }
        Ok(Answer { verdict: Some(verdict), egress, ingress, dns: None, service: None, targets })
    }

    fn judge(&mut self, flow: &Flow, detail: Detail) -> Result<Target, Complaint> {
        let egress = self.judge_end(Direction::Egress, flow, detail)?;
        let ingress = self.judge_end(Direction::Ingress, flow, detail)?;
        let has_port = !matches!(flow.protocol, Protocol::Icmp | Protocol::Icmpv6);
        Ok(Target {
            source: flow.source,
            destination: flow.destination,
            port: has_port.then_some(flow.port),
            verdict: worst([egress.verdict, ingress.verdict]),
            egress,
            ingress,
        })
    }

    fn judge_end(
        &mut self,
        direction: Direction,
        flow: &Flow,
        detail: Detail,
    ) -> Result<EndAnswer, Complaint> {
        let local = match direction {
            Direction::Egress => flow.source,
            Direction::Ingress => flow.destination,
        };
        let Some(pod) = self.cast.pod_at(local) else {
            return Ok(EndAnswer::of_nobody(local.to_string()));
        };
        let own_node = self.cast.node_of(pod);
        let ruled = self.engine.judge(direction, pod, own_node, flow);
        let ruled = ruled.map_err(|error| error.to_string())?;
        let mut end = EndAnswer::of_ruling(pod.reference.to_string(), &ruled);
        if detail == Detail::Reasons {
            let lessons = self.lessons();
            let circumstances =
                Circumstances { own_addresses: own_node.clone(), ..self.circumstances.clone() };
            let oracle = Oracle {
                objects: self.objects,
                circumstances: &circumstances,
                lessons: &lessons,
                now: self.engine.now(),
            };
            let ruled = Ruled { exempt: None, ..ruled };
            Reasons { oracle }.explain(direction, flow, &ruled, &mut end)?;
        }
        Ok(end)
    }

    /// What was learned, for the words; the engine has its own.
    fn lessons(&self) -> Vec<Lesson> {
        let Some((pod, name)) = &self.learned else { return Vec::new() };
        let given = self.answers.get(name).into_iter().flatten();
        let lesson = |address: &IpAddr| Lesson {
            pod: pod.clone(),
            name: name.clone(),
            address: *address,
            ttl: TTL,
            at: self.engine.now(),
        };
        given.map(lesson).collect()
    }

    fn reasons(&self) -> Reasons<'_> {
        Reasons {
            oracle: Oracle {
                objects: self.objects,
                circumstances: &self.circumstances,
                lessons: &[],
                now: self.engine.now(),
            },
        }
    }
}
