//! The queue before the pool's threads: bounded, small work first, tenants in turn.
//!
//! # Invariants
//!
//! - It never holds more than its limit, but for what must be done all the same, and that is done.
//! - Whoever finds it full takes the place of a tenant that has more waiting than itself; a tenant
//!   that fills the queue alone is refused alone.
//! - Small work goes first, yet nothing starves: what was passed over [`PASSED_MAX`] times is next.
//!
//! # Not here
//!
//! No clock, no threads: what waits is whatever the caller puts here.

use std::collections::{BTreeMap, VecDeque};

use super::Class;

/// So often smaller work may go before larger work that waited already.
pub(super) const PASSED_MAX: u32 = 8;

/// What waits, by class and tenant.
pub(super) struct WorkQueue<T> {
    classes: [ClassQueue<T>; Class::ALL.len()],
    limit: usize,
    waiting: usize,
    /// What waits and may be displaced.
    by_tenant: BTreeMap<String, usize>,
    joined: u64,
}

/// What waits in one class.
struct ClassQueue<T> {
    /// Tenants in turn, each with its own work in the order in which it came.
    tenants: VecDeque<(String, VecDeque<QueueItem<T>>)>,
    passed_over: u32,
}

struct QueueItem<T> {
    number: u64,
    /// Nobody takes its place.
    must: bool,
    one: T,
}

/// A place in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueueTicket {
    class: Class,
    tenant: String,
    number: u64,
}

impl QueueTicket {
    pub(super) fn class(&self) -> Class {
        self.class
    }
}

/// What became of one that wanted to wait.
#[derive(Debug)]
pub(super) enum Enqueued<T> {
    /// The work waits.
    Waits(QueueTicket),
    /// The work waits in the place of another tenant's, which is refused.
    Displaced(QueueTicket, Class, T),
    /// There is no room.
    Full(T),
}

impl<T> WorkQueue<T> {
    pub(super) fn new(limit: usize) -> Self {
        let empty = || ClassQueue { tenants: VecDeque::new(), passed_over: 0 };
        Self {
            classes: Class::ALL.map(|_| empty()),
            limit,
            waiting: 0,
            by_tenant: BTreeMap::new(),
            joined: 0,
        }
    }

    /// How much waits in a class.
    pub(super) fn waiting(&self, class: Class) -> usize {
        self.classes[class as usize].tenants.iter().map(|(_, queue)| queue.len()).sum()
    }

    /// Puts one at the end of its tenant's. What `must` be done finds room in any case.
    pub(super) fn join(&mut self, class: Class, tenant: &str, must: bool, one: T) -> Enqueued<T> {
        let mut displaced = None;
        if !must && self.waiting >= self.limit {
            displaced = self.displace(tenant);
            if displaced.is_none() {
                return Enqueued::Full(one);
            }
        }
        self.joined += 1;
        let ticket = QueueTicket { class, tenant: tenant.to_owned(), number: self.joined };
        let tenants = &mut self.classes[class as usize].tenants;
        let item = QueueItem { number: ticket.number, must, one };
        match tenants.iter_mut().find(|(name, _)| name == tenant) {
            Some((_, queue)) => queue.push_back(item),
            None => tenants.push_back((ticket.tenant.clone(), [item].into())),
        }
        self.waiting += 1;
        if !must {
            *self.by_tenant.entry(ticket.tenant.clone()).or_default() += 1;
        }
        match displaced {
            Some((class, other)) => Enqueued::Displaced(ticket, class, other),
            None => Enqueued::Waits(ticket),
        }
    }

    /// The next to be done: the smallest that waits, unless larger work was passed over too often.
    /// Only small work when nothing `heavy` may be.
    pub(super) fn take(&mut self, heavy: bool) -> Option<(Class, T)> {
        let waits = |class_queue: &ClassQueue<T>| !class_queue.tenants.is_empty();
        let may: Vec<Class> = Class::ALL
            .into_iter()
            .filter(|class| (heavy || !class.is_heavy()) && waits(&self.classes[*class as usize]))
            .collect();
        let overdue = |class: &&Class| self.classes[**class as usize].passed_over >= PASSED_MAX;
        let class = *may.iter().rev().find(overdue).or(may.first())?;
        for larger in may.into_iter().filter(|larger| *larger > class) {
            self.classes[larger as usize].passed_over += 1;
        }
        let class_queue = &mut self.classes[class as usize];
        class_queue.passed_over = 0;
        let (tenant, mut queue) = class_queue.tenants.pop_front()?;
        let QueueItem { must, one, .. } =
            queue.pop_front().expect("a tenant without work is not in turn");
        self.left(&tenant, must);
        if !queue.is_empty() {
            self.classes[class as usize].tenants.push_back((tenant, queue));
        }
        Some((class, one))
    }

    /// Gives a place up, if it was still held.
    pub(super) fn leave(&mut self, ticket: &QueueTicket) -> Option<T> {
        let QueueTicket { class, tenant, number } = ticket;
        let class_queue = &mut self.classes[*class as usize];
        let turn = class_queue.tenants.iter().position(|(name, _)| name == tenant)?;
        let queue = &mut class_queue.tenants[turn].1;
        let at = queue.iter().position(|item| item.number == *number)?;
        let QueueItem { must, one, .. } = queue.remove(at)?;
        if queue.is_empty() {
            class_queue.tenants.remove(turn);
        }
        self.left(tenant, must);
        Some(one)
    }

    /// Takes the last that came of whoever has the most waiting, if that is more than `tenant` would
    /// have. Its largest, as that holds the others up the longest.
    fn displace(&mut self, tenant: &str) -> Option<(Class, T)> {
        let own = self.by_tenant.get(tenant).copied().unwrap_or(0);
        let (most, _) = self.by_tenant.iter().max_by_key(|(_, waiting)| **waiting)?;
        if self.by_tenant[most] <= own + 1 {
            return None;
        }
        let most = most.clone();
        for class in Class::ALL.into_iter().rev() {
            let theirs =
                self.classes[class as usize].tenants.iter().find(|(name, _)| *name == most);
            let last = theirs.and_then(|(_, queue)| queue.iter().rfind(|item| !item.must));
            if let Some(&QueueItem { number, .. }) = last {
                let ticket = QueueTicket { class, tenant: most, number };
                return self.leave(&ticket).map(|one| (class, one));
            }
        }
        None
    }

    fn left(&mut self, tenant: &str, must: bool) {
        self.waiting -= 1;
        if must {
            return;
        }
        if let Some(waiting) = self.by_tenant.get_mut(tenant) {
            *waiting -= 1;
            if *waiting == 0 {
                self.by_tenant.remove(tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Class::{Large, Medium, Small};

    fn join(queue: &mut WorkQueue<&'static str>, class: Class, one: &'static str) -> QueueTicket {
        let tenant = &one[..1];
        match queue.join(class, tenant, false, one) {
            Enqueued::Waits(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }

    /// The order in which everything is taken.
    fn order(queue: &mut WorkQueue<&'static str>, heavy: bool) -> String {
        let all = std::iter::from_fn(|| queue.take(heavy).map(|(_, one)| one));
        all.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn small_work_goes_before_large_whenever_it_came() {
        let mut queue = WorkQueue::new(99);
        for (class, one) in [(Large, "a1"), (Medium, "a2"), (Small, "a3"), (Large, "b1")] {
            join(&mut queue, class, one);
        }
        join(&mut queue, Small, "b2");
        assert_eq!(order(&mut queue, true), "a3 b2 a2 a1 b1");
    }

    #[test]
    fn what_must_be_done_stays_whoever_comes() {
        let mut queue = WorkQueue::new(2);
        for one in ["a1", "a2", "a3"] {
            assert!(matches!(queue.join(Large, "a", true, one), Enqueued::Waits(_)));
        }
        assert!(matches!(queue.join(Small, "b", false, "b1"), Enqueued::Full("b1")));
        assert_eq!(order(&mut queue, true), "a1 a2 a3");
        join(&mut queue, Small, "b1");
        assert_eq!(order(&mut queue, true), "b1", "nothing is counted that is gone");
    }

    #[test]
    fn where_nothing_heavy_may_be_done_only_small_work_is() {
        let mut queue = WorkQueue::new(99);
        for (class, one) in [(Large, "a1"), (Medium, "a2"), (Small, "a3")] {
            join(&mut queue, class, one);
        }
        assert_eq!(order(&mut queue, false), "a3");
        assert_eq!(order(&mut queue, true), "a2 a1");
    }

    #[test]
    fn what_a_tenant_queues_holds_up_nobody_else() {
        let mut queue = WorkQueue::new(99);
        for one in ["a1", "a2", "a3", "a4"] {
            join(&mut queue, Large, one);
        }
        join(&mut queue, Large, "b1");
        join(&mut queue, Large, "c1");
        join(&mut queue, Large, "b2");
        assert_eq!(order(&mut queue, true), "a1 b1 c1 a2 b2 a3 a4");
    }

    #[test]
    fn large_work_is_passed_over_so_often_and_then_is_next() {
        let mut queue = WorkQueue::new(99);
        join(&mut queue, Large, "z");
        for _ in 0..20 {
            join(&mut queue, Small, "a");
        }
        let before = order(&mut queue, true);
        let passed = before.split(' ').take_while(|one| *one != "z").count();
        assert_eq!(passed, 8, "{before}");
    }

    #[test]
    fn a_full_line_refuses_whoever_fills_it_and_takes_in_others_in_its_place() {
        let mut queue = WorkQueue::new(3);
        for one in ["a1", "a2", "a3"] {
            join(&mut queue, Small, one);
        }
        assert!(matches!(queue.join(Small, "a", false, "a4"), Enqueued::Full("a4")));
        let Enqueued::Displaced(_, Small, "a3") = queue.join(Large, "b", false, "b1") else {
            panic!("the last of the one who has the most")
        };
        // Two and one: b would have as many as a.
        assert!(matches!(queue.join(Small, "b", false, "b2"), Enqueued::Full("b2")));
        let Enqueued::Waits(_) = queue.join(Small, "b", true, "b3") else {
            panic!("it must be done")
        };
        assert_eq!(order(&mut queue, true), "a1 b3 a2 b1");
    }

    #[test]
    fn whoever_leaves_frees_its_place_once() {
        let mut queue = WorkQueue::new(2);
        let ticket = join(&mut queue, Large, "a1");
        join(&mut queue, Large, "a2");
        assert_eq!(queue.leave(&ticket), Some("a1"));
        assert_eq!((queue.leave(&ticket), queue.waiting(Large)), (None, 1));
        join(&mut queue, Large, "b1");
        assert!(matches!(queue.join(Large, "c", false, "c1"), Enqueued::Full(_)));
        assert_eq!(order(&mut queue, true), "a2 b1");
    }
}
