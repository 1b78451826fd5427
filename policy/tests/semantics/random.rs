//! Policy tables against the oracle, over random objects and flows.

use namegate_policy::oracle::Oracle;
use namegate_policy::resource::Pod;
use namegate_policy::rule::Direction;
use namegate_policy::testing::case;
use proptest::prelude::*;

use crate::engine::Compiled;

/// 50 flows a case on average, looked at from both ends: 10^5 flows. `NAMEGATE_CASES` asks for more.
fn config() -> ProptestConfig {
    let asked = std::env::var("NAMEGATE_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(2_000), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn tables_decide_as_the_oracle_does(case in case()) {
        let compiled = Compiled::new(&case);
        let names_of = |pod: &Pod, address| compiled.names_of(pod, address);
        let oracle = Oracle {
            objects: &case.objects,
            own_addresses: &case.own_addresses,
            ranges: &case.ranges,
            names_of: &names_of,
        };
        for flow in &case.flows {
            let expected = oracle.decide(flow);
            let (source, destination) = (flow.source, flow.destination);
            if let Some(found) = compiled.decide(Direction::Egress, source, destination, flow) {
                prop_assert_eq!(Some(found), expected.egress, "egress of {:?}", flow);
            }
            if let Some(found) = compiled.decide(Direction::Ingress, destination, source, flow) {
                prop_assert_eq!(Some(found), expected.ingress, "ingress of {:?}", flow);
            }
        }
    }
}
