use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;

const MIB: usize = 1 << 20;

/// 16 MiB: 8 for all, one of which is for small requests, of up to 256 KiB each, and 8 for one
/// at a time.
fn memory() -> Arc<MemoryBudget> {
    let gauge = || IntGauge::new("g", "a gauge").expect("a gauge");
    MemoryBudget::new(16 * MIB, 3, gauge(), gauge())
}

/// Grows at once, or fails, or waits.
fn now(lease: &mut MemoryLease, bytes: usize) -> Option<Result<(), WorkError>> {
    match pin!(lease.grow(bytes)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(grown) => Some(grown),
        Poll::Pending => None,
    }
}

fn now_for_a_while(lease: &mut MemoryLease, bytes: usize) -> Option<Result<(), WorkError>> {
    poll(&mut Box::pin(lease.grow_for_a_while(bytes)))
}

fn poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(ready) => Some(ready),
        Poll::Pending => None,
    }
}

#[test]
fn what_is_under_way_holds_its_memory_when_its_request_has_gone() {
    let memory = memory();
    let mut lease = memory.lease("a");
    assert_eq!(now(&mut lease, 7 * MIB), Some(Ok(())));
    let under_way = lease.held_by(|| ());
    drop(lease);
    assert_eq!(memory.held.get(), 7 * MIB as i64);
    drop(under_way);
    assert_eq!(memory.held.get(), 0);
}

#[test]
fn a_request_that_is_refused_lets_go_at_once() {
    let memory = memory();
    let mut lease = memory.lease("a");
    assert_eq!(now(&mut lease, 7 * MIB), Some(Ok(())));
    lease.let_go();
    assert_eq!((memory.held.get(), lease.bytes()), (0, 0));
    assert_eq!(now(&mut lease, 8 * MIB), Some(Ok(())));
    drop(lease);
    assert_eq!(memory.held.get(), 0);
}

#[test]
fn who_holds_much_and_stalls_does_not_get_the_reserve_as_well() {
    let memory = memory();
    let mut stalled: Vec<MemoryLease> = (0..8).map(|_| memory.lease("a")).collect();
    for lease in &mut stalled[..7] {
        assert_eq!(now(lease, MIB), Some(Ok(())));
    }
    let [.., more] = &mut stalled[..] else { unreachable!("eight") };
    let mut holder = memory.lease("b");
    let mut reserve = memory.lease("c");
    assert_eq!(now(&mut reserve, 2 * MIB), Some(Ok(())), "the reserve is somebody's");
    let mut first = Box::pin(more.grow(2 * MIB));
    assert_eq!(poll(&mut first), None);
    let mut second = Box::pin(holder.grow(2 * MIB));
    assert_eq!(poll(&mut second), None);
    drop(reserve);
    assert_eq!(poll(&mut second), Some(Ok(())), "it came later, and holds nothing");
    assert_eq!(poll(&mut first), None);
}

#[test]
fn never_more_is_held_than_the_limit_and_all_is_given_back() {
    let memory = memory();
    let mut leases: Vec<MemoryLease> = (0..7).map(|_| memory.lease("a")).collect();
    for lease in &mut leases {
        assert_eq!(now(lease, MIB), Some(Ok(())));
    }
    // The reserve: the oldest that waits.
    let mut borrower = memory.lease("a");
    assert_eq!(now(&mut borrower, 7 * MIB), Some(Ok(())));
    assert_eq!(now(&mut borrower, MIB), Some(Ok(())));
    assert_eq!(memory.held.get(), 15 * MIB as i64);
    let mut late = memory.lease("a");
    {
        let mut waits = Box::pin(late.grow(MIB));
        assert_eq!((poll(&mut waits), memory.waiting.get()), (None, 1));
        drop(borrower);
        assert_eq!(poll(&mut waits), Some(Ok(())));
    }
    drop((leases, late));
    assert_eq!((memory.held.get(), memory.waiting.get()), (0, 0));
}

#[test]
fn one_request_never_holds_more_than_half() {
    let memory = memory();
    let mut lease = memory.lease("a");
    assert_eq!(now(&mut lease, 5 * MIB), Some(Ok(())));
    let (bytes, limit) = (9 * MIB, 8 * MIB);
    assert_eq!(now(&mut lease, 4 * MIB), Some(Err(WorkError::TooMuch { bytes, limit })));
    assert_eq!(now_for_a_while(&mut lease, 99 * MIB), Some(Ok(())));
    assert_eq!(lease.bytes(), 8 * MIB);
}

#[test]
fn requests_that_hold_a_part_and_wait_for_the_rest_all_come_to_their_end() {
    let memory = memory();
    let [mut a, mut b] = [memory.lease("a"), memory.lease("b")];
    assert_eq!(now(&mut a, 3 * MIB), Some(Ok(())));
    assert_eq!(now(&mut b, 4 * MIB), Some(Ok(())));
    let mut second = Box::pin(b.grow(4 * MIB));
    // The oldest that waits is the only one, so it takes the reserve.
    assert_eq!(poll(&mut second), Some(Ok(())));
    let mut first = Box::pin(a.grow(4 * MIB));
    assert_eq!(poll(&mut first), None);
    drop(second);
    drop(b);
    assert_eq!(poll(&mut first), Some(Ok(())));
}

#[test]
fn small_requests_go_in_while_large_ones_wait() {
    let memory = memory();
    let mut large: Vec<MemoryLease> = (0..3).map(|_| memory.lease("a")).collect();
    assert_eq!(now(&mut large[0], 7 * MIB), Some(Ok(())));
    assert_eq!(now(&mut large[1], 7 * MIB), Some(Ok(())));
    let mut waits = Box::pin(large[2].grow(MIB));
    assert_eq!(poll(&mut waits), None);
    let mut small = memory.lease("b");
    assert_eq!(now(&mut small, MIB / 4), Some(Ok(())));
    assert_eq!(poll(&mut waits), None);
}

#[test]
fn whose_tenant_holds_the_least_is_next() {
    let memory = memory();
    let [mut a, mut reserve] = [memory.lease("a"), memory.lease("a")];
    assert_eq!(now(&mut a, 4 * MIB), Some(Ok(())));
    let mut more = memory.lease("c");
    assert_eq!(now(&mut more, 3 * MIB), Some(Ok(())));
    assert_eq!(now(&mut reserve, MIB), Some(Ok(())));
    let [mut a2, mut b] = [memory.lease("a"), memory.lease("b")];
    let mut theirs = Box::pin(a2.grow(2 * MIB));
    assert_eq!(poll(&mut theirs), None);
    let mut ours = Box::pin(b.grow(2 * MIB));
    assert_eq!(poll(&mut ours), None);
    drop(more);
    assert_eq!((poll(&mut ours), poll(&mut theirs)), (Some(Ok(())), None));
}

#[test]
fn so_many_wait_and_a_tenant_that_waits_often_makes_room_for_another() {
    let memory = memory();
    let mut holders = [memory.lease("z"), memory.lease("z")];
    for holder in &mut holders {
        assert_eq!(now(holder, 7 * MIB), Some(Ok(())));
    }
    let mut leases: Vec<MemoryLease> = (0..4).map(|_| memory.lease("a")).collect();
    let mut waits: Vec<_> = leases.iter_mut().map(|lease| Box::pin(lease.grow(MIB))).collect();
    let told: Vec<_> = waits.iter_mut().map(poll).collect();
    let full = Some(Err(WorkError::Full { limit: 3 }));
    assert_eq!(told, [None, None, None, full.clone()]);
    let mut other = memory.lease("b");
    let mut ours = Box::pin(other.grow(MIB));
    assert_eq!((poll(&mut ours), poll(&mut waits[2])), (None, full));
    // Who goes away does not wait any more.
    drop(waits);
    drop(leases);
    assert_eq!(memory.waiting.get(), 1);
}
