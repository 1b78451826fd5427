//! Endpoints: which pod's table judges which interface.

use namegate_policy::table::ClauseTier;

use super::{Apply, EndpointRow, Kernel, Outcome};
use crate::state::{EndpointEffect, EndpointSpec};

impl<K: Kernel> Apply<K> {
    /// Writes an endpoint's row, then attaches: an interface with programs and no row drops.
    pub(super) fn put_endpoint(&mut self, ifindex: u32, spec: EndpointSpec, outcome: &mut Outcome) {
        if !self.write_endpoint(ifindex, spec.clone(), outcome) {
            return;
        }
        match self.kernel.attach(ifindex) {
            Ok(()) => outcome.swaps += 1,
            Err(error) => {
                outcome.fail(&format!("Pod {}: interface {}", spec.pod, spec.interface), &error);
                self.retry.endpoints.insert(ifindex, EndpointEffect::Enforce(spec));
            }
        }
    }

    /// Writes an endpoint's row and says whether it is written.
    fn write_endpoint(&mut self, ifindex: u32, spec: EndpointSpec, outcome: &mut Outcome) -> bool {
        let Some(in_force) = self.identities.get(&spec.identity) else {
            // Its table could not be written: tried again with it, and closed until then.
            outcome.failures.push(format!("Pod {}: its policy is not in place", spec.pod));
            self.keep_endpoint(ifindex, spec, outcome);
            return false;
        };
        let (table, is_dns_governed) = (in_force.table, in_force.policy.names.is_governed());
        // Whom nothing governs is left to whoever else translates.
        let is_translated =
            in_force.policy.egress.iter().any(|clause| clause.tier != ClauseTier::Open);
        let same_pod = |row: &EndpointRow| row.addresses == spec.addresses && row.mac == spec.mac;
        let epoch = match (self.endpoints.get(&ifindex), self.inherited.get(&ifindex)) {
            (Some((old, row)), _) if old.pod == spec.pod && same_pod(row) => row.epoch,
            (None, Some(row)) if same_pod(row) => row.epoch,
            _ => {
                self.next_epoch += 1;
                self.next_epoch - 1
            }
        };
        let row = EndpointRow {
            ifindex,
            identity: spec.identity,
            table,
            generation: self.generation(),
            epoch,
            is_dns_governed,
            is_translated,
            mac: spec.mac,
            addresses: spec.addresses.clone(),
        };
        if let Err(error) = self.kernel.set_endpoint(&row) {
            outcome.fail(&format!("Pod {}: interface {}", spec.pod, spec.interface), &error);
            self.keep_endpoint(ifindex, spec, outcome);
            return false;
        }
        self.inherited.remove(&ifindex);
        self.endpoints.insert(ifindex, (spec, row));
        true
    }

    /// Leaves an interface as it is where that is this pod's, closes it where it is another's or
    /// nobody's, and tries again.
    fn keep_endpoint(&mut self, ifindex: u32, spec: EndpointSpec, outcome: &mut Outcome) {
        let is_its_own = match (self.endpoints.get(&ifindex), self.inherited.get(&ifindex)) {
            (Some((known, _)), _) => known.pod == spec.pod,
            (None, Some(row)) => row.addresses == spec.addresses,
            (None, None) => false,
        };
        let kept = if is_its_own {
            self.kernel.attach(ifindex)
        } else {
            self.forget_endpoint(ifindex);
            self.kernel.close(ifindex)
        };
        if let Err(error) = kept {
            outcome.fail(&format!("interface {}", spec.interface), &error);
        }
        self.retry.endpoints.insert(ifindex, EndpointEffect::Enforce(spec));
    }

    pub(super) fn drop_endpoint(&mut self, ifindex: u32, outcome: &mut Outcome) {
        let written =
            self.kernel.detach(ifindex).and_then(|()| self.kernel.remove_endpoint(ifindex));
        self.forget_endpoint(ifindex);
        if let Err(error) = written {
            outcome.fail(&format!("interface {ifindex}"), &error);
            self.retry.endpoints.insert(ifindex, EndpointEffect::Release);
        }
    }

    pub(super) fn close_endpoint(&mut self, ifindex: u32, outcome: &mut Outcome) {
        let written = self.kernel.close(ifindex);
        self.forget_endpoint(ifindex);
        if let Err(error) = written {
            outcome.fail(&format!("interface {ifindex}, whose pod is gone"), &error);
            self.retry.endpoints.insert(ifindex, EndpointEffect::Close);
        }
    }

    fn forget_endpoint(&mut self, ifindex: u32) {
        self.endpoints.remove(&ifindex);
        self.inherited.remove(&ifindex);
    }

    /// Switches every endpoint whose identity has another table, but those that wait to become
    /// something else. Their programs are attached: to look again costs far more than the switch.
    pub(super) fn swap_tables(&mut self, outcome: &mut Outcome) {
        let behind: Vec<u32> = self
            .endpoints
            .iter()
            .filter(|(ifindex, (spec, row))| {
                let known = self.identities.get(&spec.identity);
                known.is_some_and(|known| known.table != row.table)
                    && !self.retry.endpoints.contains_key(ifindex)
            })
            .map(|(ifindex, _)| *ifindex)
            .collect();
        for ifindex in behind {
            if let Some((spec, _)) = self.endpoints.get(&ifindex).cloned()
                && self.write_endpoint(ifindex, spec, outcome)
            {
                outcome.swaps += 1;
            }
        }
    }

    pub(super) fn generation(&mut self) -> u32 {
        self.next_generation += 1;
        self.next_generation - 1
    }
}
