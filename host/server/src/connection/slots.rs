//! How many connections there may be, in all and of one address, and a reserve beyond that in which
//! a connection that only waits makes way for a new one.
//!
//! A connection costs its client nothing and may be idle for long, so any number of places can be
//! filled with nothing. What must be answered all the same (who asks for our health; an operator)
//! comes with a request in hand, and has one of the reserve's places for as long as that takes.
//!
//! # Invariants
//!
//! - At most `connections_max` and the reserve are open, and one that waits for a place there.
//! - In the reserve no connection that waits keeps out a new one for longer than [`RESERVE_GRACE`]:
//!   of the address that has most there, the one that has waited longest makes way.
//!
//! # Not here
//!
//! No sockets: `listener` has them, and does what is said here.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::failure::ConnectionLimit;

/// How long whoever comes in has to send a request before it makes way: longer than a client that
/// has one takes, on a machine that is busy. Who waits for a place waits for this divided by the
/// places of the reserve, for each who waits before it.
const RESERVE_GRACE: Duration = Duration::from_millis(250);

/// How many connections may be open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotLimits {
    /// Connections that stay for as long as they like.
    pub(crate) connections_max: usize,
    /// Connections that one address may have.
    pub(crate) per_address_max: usize,
    /// Connections beyond that.
    pub(crate) reserve: usize,
}

/// All slots of a listener.
#[derive(Debug)]
pub(crate) struct ConnectionSlots {
    limits: SlotLimits,
    regular: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    addresses: Arc<Addresses>,
    /// Connections in the reserve, the oldest first.
    reserved_connections: Vec<Weak<ReserveConnection>>,
}

/// A connection's slot, given back when it is dropped.
#[derive(Debug)]
pub(crate) enum ConnectionSlot {
    Regular {
        _permit: OwnedSemaphorePermit,
        _address: AddressSlot,
    },
    Reserve {
        _permit: OwnedSemaphorePermit,
        reserved: Arc<ReserveConnection>,
        over: ConnectionLimit,
    },
}

/// A connection in the reserve.
#[derive(Debug)]
pub(crate) struct ReserveConnection {
    address: IpAddr,
    since: Instant,
    /// Is it answered just now?
    busy: AtomicBool,
    /// Was it told to make way?
    displaced: AtomicBool,
    way: Notify,
}

impl ConnectionSlots {
    pub(crate) fn new(limits: SlotLimits) -> Self {
        let regular = limits.connections_max.min(Semaphore::MAX_PERMITS);
        Self {
            regular: Arc::new(Semaphore::new(regular)),
            reserve: Arc::new(Semaphore::new(limits.reserve)),
            limits,
            addresses: Arc::default(),
            reserved_connections: Vec::new(),
        }
    }

    /// A place for a connection from there; none while the reserve is full: see [`Self::room`].
    pub(crate) fn enter(&mut self, address: IpAddr) -> Option<ConnectionSlot> {
        let address = client(address);
        let over = match AddressSlot::enter(&self.addresses, address, self.limits.per_address_max) {
            None => ConnectionLimit::Address(self.limits.per_address_max),
            Some(of_address) => match Arc::clone(&self.regular).try_acquire_owned() {
                Ok(permit) => {
                    return Some(ConnectionSlot::Regular { _permit: permit, _address: of_address });
                }
                Err(_) => ConnectionLimit::Connections(self.limits.connections_max),
            },
        };
        let permit = Arc::clone(&self.reserve).try_acquire_owned().ok()?;
        let reserved = Arc::new(ReserveConnection {
            address,
            since: Instant::now(),
            busy: AtomicBool::new(false),
            displaced: AtomicBool::new(false),
            way: Notify::new(),
        });
        self.reserved_connections.retain(|reserved| reserved.strong_count() > 0);
        self.reserved_connections.push(Arc::downgrade(&reserved));
        Some(ConnectionSlot::Reserve { _permit: permit, reserved, over })
    }

    /// Waits for room in the reserve, and makes some if nobody does it before. Nothing is lost when
    /// the wait is given up.
    pub(crate) async fn room(&self) {
        // While all are being answered there is nobody to displace, and soon there is room.
        if let Some(reserved) = self.next_out()
            && timeout_at(reserved.since + RESERVE_GRACE, self.reserve.acquire()).await.is_err()
            && !reserved.displace()
        {
            // It is being answered by now.
            return;
        }
        // Whoever idles by then is next: nobody tells.
        let _ = tokio::time::timeout(RESERVE_GRACE, self.reserve.acquire()).await;
    }

    /// Tells somebody in the reserve to make way at once, if anybody is to.
    pub(crate) fn displace(&self) -> bool {
        self.next_out().is_some_and(|reserved| reserved.displace())
    }

    /// Which connection of the reserve makes way next.
    fn next_out(&self) -> Option<Arc<ReserveConnection>> {
        let reserved_connections: Vec<_> =
            self.reserved_connections.iter().filter_map(Weak::upgrade).collect();
        let mut of = HashMap::new();
        for reserved in &reserved_connections {
            *of.entry(reserved.address).or_insert(0) += 1;
        }
        // The last of equals is the first of the list turned round: the oldest.
        let waiting = reserved_connections.iter().rev().filter(|reserved| reserved.waits());
        waiting.max_by_key(|reserved| of[&reserved.address]).cloned()
    }
}

impl ReserveConnection {
    /// Whether the connection's request is being answered.
    pub(crate) fn is_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Release);
    }

    fn waits(&self) -> bool {
        !self.busy.load(Ordering::Acquire) && !self.displaced.load(Ordering::Acquire)
    }

    fn displace(&self) -> bool {
        let waits = self.waits();
        if waits {
            self.displaced.store(true, Ordering::Release);
            self.way.notify_one();
        }
        waits
    }

    /// Returns when it has to make way.
    pub(crate) async fn makes_way(&self) {
        self.way.notified().await;
    }
}

/// How many connections each address has.
type Addresses = Mutex<HashMap<IpAddr, usize>>;

/// A place among the connections of an address.
#[derive(Debug)]
pub(crate) struct AddressSlot {
    address: IpAddr,
    // Held for one operation of the map.
    all: Arc<Addresses>,
}

impl AddressSlot {
    fn enter(all: &Arc<Addresses>, address: IpAddr, most: usize) -> Option<Self> {
        let mut counts = all.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.get(&address).is_some_and(|count| *count >= most) || most == 0 {
            return None;
        }
        *counts.entry(address).or_default() += 1;
        Some(Self { address, all: Arc::clone(all) })
    }
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        let mut counts = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// What counts as one client: an address, or of IPv6 the network of 64 bits that everybody has.
pub(crate) fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn slots(connections_max: usize, per_address_max: usize, reserve: usize) -> ConnectionSlots {
        ConnectionSlots::new(SlotLimits { connections_max, per_address_max, reserve })
    }

    async fn within<T>(future: impl Future<Output = T>) -> T {
        let waited = tokio::time::timeout(Duration::from_secs(20), future).await;
        waited.expect("somebody makes way")
    }

    fn over(place: &Option<ConnectionSlot>) -> Option<ConnectionLimit> {
        match place.as_ref().expect("there is room") {
            ConnectionSlot::Regular { .. } => None,
            ConnectionSlot::Reserve { over, .. } => Some(*over),
        }
    }

    fn displaced(place: &Option<ConnectionSlot>) -> bool {
        let Some(ConnectionSlot::Reserve { reserved, .. }) = place else { return false };
        reserved.displaced.load(Ordering::Acquire)
    }

    #[test]
    fn one_address_cannot_take_all_places_and_gets_them_back() {
        let mut slots = slots(3, 2, 9);
        let (one, two) = (address("10.0.0.1"), address("::ffff:10.0.0.2"));
        let first = slots.enter(one);
        let second = slots.enter(one);
        assert_eq!((over(&first), over(&second)), (None, None));
        assert_eq!(over(&slots.enter(one)), Some(ConnectionLimit::Address(2)));
        let other = slots.enter(two);
        assert_eq!(over(&other), None);
        assert_eq!(over(&slots.enter(address("10.0.0.2"))), Some(ConnectionLimit::Connections(3)));
        drop(first);
        let again = slots.enter(one);
        assert_eq!(over(&again), None);
        drop((second, other, again));
        assert!(slots.addresses.lock().expect("no panic").is_empty(), "nothing is left of them");
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        assert_eq!(client(address("2001:db8:1:2::3")), client(address("2001:db8:1:2:ffff::")));
        assert_ne!(client(address("2001:db8:1:2::3")), client(address("2001:db8:1:3::3")));
    }

    #[tokio::test]
    async fn who_has_most_and_waited_longest_makes_way_and_who_is_answered_does_not() {
        let mut slots = slots(0, 1, 4);
        let (many, few) = (address("10.0.0.1"), address("10.0.0.2"));
        let places = [few, many, many, many].map(|from| slots.enter(from));
        let Some(ConnectionSlot::Reserve { reserved: probe, .. }) = &places[1] else {
            panic!("not in the reserve")
        };
        assert!(slots.enter(few).is_none(), "it is full");
        probe.is_busy(true);
        for expected in [[false, false, true, false], [false, false, true, true]] {
            assert!(slots.displace());
            assert_eq!([0, 1, 2, 3].map(|n| displaced(&places[n])), expected);
        }
        // Whom it is left to is the one who alone comes from there.
        assert!(slots.displace());
        assert!(displaced(&places[0]));
        assert!(!slots.displace(), "the last one is being answered");
        drop(places);
        within(slots.room()).await;
        assert!(slots.enter(few).is_some());
    }

    #[tokio::test]
    async fn who_has_just_come_is_given_time_to_send_a_request() {
        let mut slots = slots(0, 1, 1);
        let began = Instant::now();
        let place = slots.enter(address("10.0.0.1"));
        let Some(ConnectionSlot::Reserve { reserved, .. }) = &place else {
            panic!("not in the reserve")
        };
        let reserved = Arc::clone(reserved);
        let makes_way = async {
            reserved.makes_way().await;
            drop(place);
            began.elapsed()
        };
        let ((), after) = within(async { tokio::join!(slots.room(), makes_way) }).await;
        assert!(after >= RESERVE_GRACE && after >= Duration::from_millis(200), "{after:?}");
    }
}
