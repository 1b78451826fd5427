//! What many pods have in common, kept once: replicas agree in labels, ports, account and namespace.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use namegate_policy::resource::{NamedPorts, Pod};
use namegate_policy::selector::Labels;

/// How many values a pool has before it looks for those that nobody uses.
const SWEEP_MIN: usize = 256;

/// Values of the pods that are known.
#[derive(Debug, Default)]
pub(super) struct Commons {
    texts: Pool<str>,
    labels: Pool<Labels>,
    ports: Pool<NamedPorts>,
}

impl Commons {
    /// Puts what other pods have as well in the place of what is the pod's own, and its namespace and name
    /// as somebody else keeps them.
    pub(super) fn share(&mut self, pod: &mut Pod, (namespace, name): &(Arc<str>, Arc<str>)) {
        let own = [&mut pod.reference.namespace, &mut pod.reference.name];
        for (own, kept) in own.into_iter().zip([namespace, name]).filter(|(own, kept)| own == kept)
        {
            *own = Arc::clone(kept);
        }
        self.texts.share(&mut pod.service_account);
        if let Some(node) = &mut pod.node_name {
            self.texts.share(node);
        }
        self.labels.share(&mut pod.labels);
        self.ports.share(&mut pod.named_ports);
    }

    /// The same with a text by itself.
    pub(super) fn share_text(&mut self, text: &mut Arc<str>) {
        self.texts.share(text);
    }
}

/// Values that somebody uses, and twice as many at most that nobody does any more.
#[derive(Debug)]
struct Pool<T: ?Sized> {
    values: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { values: HashSet::new(), sweep_at: SWEEP_MIN }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn share(&mut self, value: &mut Arc<T>) {
        if let Some(known) = self.values.get(value) {
            *value = Arc::clone(known);
            return;
        }
        if self.values.len() >= self.sweep_at {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.values.shrink_to_fit();
            self.sweep_at = SWEEP_MIN.max(2 * self.values.len());
        }
        self.values.insert(Arc::clone(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_go_with_their_last_user() {
        let mut pool = Pool::<str>::default();
        let mut first: Arc<str> = "shop".into();
        let mut second: Arc<str> = "shop".into();
        pool.share(&mut first);
        pool.share(&mut second);
        assert!(Arc::ptr_eq(&first, &second));
        for number in 0..10 * SWEEP_MIN {
            pool.share(&mut number.to_string().into());
            assert!(pool.values.len() <= SWEEP_MIN, "nobody uses these");
        }
        let mut third: Arc<str> = "shop".into();
        pool.share(&mut third);
        assert!(Arc::ptr_eq(&first, &third), "what is used stays");
    }
}
