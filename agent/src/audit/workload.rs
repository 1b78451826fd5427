//! What a pod is a copy of, as far as its name and the labels of its controller tell.

use namegate_policy::selector::Labels;

/// The name of the Deployment, StatefulSet, DaemonSet or Job that made the pod; the pod's own name
/// where no label says that any did. Of a name too long for its suffix the label's is what is left.
pub fn workload<'a>(pod: &'a str, labels: &'a Labels) -> &'a str {
    let label = |key: &str| labels.get(key).map(|value| &**value);
    if let Some(job) = label("batch.kubernetes.io/job-name").or_else(|| label("job-name")) {
        return without_number(job);
    }
    if let Some(hash) = label("pod-template-hash") {
        let owner = without_suffix(pod)
            .and_then(|set| set.strip_suffix(hash))
            .and_then(|name| name.strip_suffix('-'));
        return owner.filter(|name| !name.is_empty()).unwrap_or(pod);
    }
    if label("apps.kubernetes.io/pod-index").is_some()
        || label("statefulset.kubernetes.io/pod-name").is_some()
    {
        return without_number(pod);
    }
    if label("controller-revision-hash").is_some() {
        return without_suffix(pod).unwrap_or(pod);
    }
    pod
}

/// The name without the five characters that the API server put behind it.
fn without_suffix(name: &str) -> Option<&str> {
    let (owner, suffix) = name.rsplit_once('-')?;
    (suffix.len() == 5 && !owner.is_empty()).then_some(owner)
}

/// The name without a number behind it: the place in a StatefulSet, or the time of a CronJob's run.
fn without_number(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((owner, number))
            if !owner.is_empty()
                && !number.is_empty()
                && number.bytes().all(|b| b.is_ascii_digit()) =>
        {
            owner
        }
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pod's name, its labels, and what it is a copy of.
    type Case = (&'static str, &'static [(&'static str, &'static str)], &'static str);

    #[test]
    fn controllers_are_known_by_their_labels() {
        let cases: [Case; 10] = [
            ("web", &[], "web"),
            ("web-7d4b9c6f5-x2x9k", &[], "web-7d4b9c6f5-x2x9k"),
            ("web-7d4b9c6f5-x2x9k", &[("pod-template-hash", "7d4b9c6f5")], "web"),
            ("a-b-7d4b9c6f5-x2x9k", &[("pod-template-hash", "7d4b9c6f5")], "a-b"),
            ("odd", &[("pod-template-hash", "7d4b9c6f5")], "odd"),
            ("db-0", &[("apps.kubernetes.io/pod-index", "0")], "db"),
            ("db-12", &[("statefulset.kubernetes.io/pod-name", "db-12")], "db"),
            ("proxy-q8x7z", &[("controller-revision-hash", "5c9")], "proxy"),
            ("run-28001-abcde", &[("job-name", "run-28001")], "run"),
            ("once-abcde", &[("batch.kubernetes.io/job-name", "once")], "once"),
        ];
        for (pod, labels, expected) in cases {
            let labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
            assert_eq!(workload(pod, &labels), expected, "{pod} {labels:?}");
        }
    }
}
