use super::*;

#[test]
fn every_future_of_a_hearing_can_go_to_another_thread() {
    fn sent<T: Send>(_: &T) {}
    fn check(mut hearing: Hearing, mut oversight: crate::Oversight, facts: crate::Facts) {
        let body = Arc::new(crate::Body::new(vec![]));
        let caller: crate::Caller = unreachable!();
        #[allow(unreachable_code, reason = "only types matter")]
        {
            sent(&hearing.identify(&caller));
            let mut facts = facts;
            sent(&hearing.transform(&mut facts, &body));
            sent(&hearing.route(&facts, &[], &body));
            sent(&oversight.event(crate::Event::Queued(0), unreachable!()));
            sent(&hearing.admit(
                facts,
                &crate::Load::default(),
                unreachable!(),
                unreachable!(),
                &body,
            ));
        }
    }
    let _ = check;
}
