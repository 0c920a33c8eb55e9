use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::Condvar;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use interlock_metrics::Registry;

use super::*;

/// Work waits here until the test lets it go on.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<Held>, Condvar)>);

#[derive(Default)]
struct Held {
    open: bool,
    inside: usize,
}

impl Gate {
    fn hold(&self) {
        let (held, changes) = &*self.0;
        let mut held = lock(held);
        held.inside += 1;
        changes.notify_all();
        drop(changes.wait_while(held, |held| !held.open).expect("no panic"));
    }

    /// Returns once so many are held here.
    fn holds(&self, inside: usize) {
        let (held, changes) = &*self.0;
        let waited = changes
            .wait_timeout_while(lock(held), Duration::from_secs(20), |held| held.inside < inside);
        assert!(!waited.expect("no panic").1.timed_out(), "so many did not come");
    }

    fn open(&self) {
        lock(&self.0.0).open = true;
        self.0.1.notify_all();
    }
}

struct Rig {
    pool: WorkPool,
    registry: Registry,
}

impl Rig {
    /// Two threads, and a queue of three.
    fn new() -> Self {
        let config = WorkConfig {
            threads: NonZeroUsize::new(2),
            requests_max: NonZeroUsize::new(3).expect("not 0"),
            time_max: Duration::from_secs(3600),
            ..WorkConfig::default()
        };
        let registry = Registry::new();
        let pool = WorkPool::start(&config, WorkMetrics::register(&registry));
        Self { pool: pool.expect("there are threads"), registry }
    }

    /// The value of a metric line without its prefix.
    fn metric(&self, line: &str) -> u64 {
        let wanted = format!("interlock_work_{line} ");
        let all = self.registry.expose().expect("encodes");
        let value = all.lines().find_map(|line| line.strip_prefix(&wanted)).unwrap_or("0");
        value.parse().expect("a whole number")
    }

    /// Work of this class and tenant that is held at the gate; it has joined the queue.
    fn held<'a>(&'a self, gate: &Gate, job: WorkJob<'a>) -> Running<'a> {
        let gate = gate.clone();
        Running::begin(self.pool.run(job, move || gate.hold()))
    }

    async fn metric_is(&self, line: &str, value: u64) {
        within(async {
            while self.metric(line) != value {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// Work that somebody waits for.
struct Running<'a, T = ()>(Pin<Box<dyn Future<Output = Result<T, WorkError>> + 'a>>);

impl<'a, T> Running<'a, T> {
    fn begin(future: impl Future<Output = Result<T, WorkError>> + 'a) -> Self {
        let mut running = Self(Box::pin(future));
        assert!(running.now().is_none(), "it cannot be done yet");
        running
    }

    fn now(&mut self) -> Option<Result<T, WorkError>> {
        match pin!(&mut self.0).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }

    async fn done(self) -> Result<T, WorkError> {
        within(self.0).await
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it happens")
}

fn small(tenant: &str) -> WorkJob<'_> {
    WorkJob::new(Class::Small, tenant)
}

fn large(tenant: &str) -> WorkJob<'_> {
    WorkJob::new(Class::Large, tenant)
}

fn owned(part: ModelPart) -> WorkJob<'static> {
    WorkJob { owner: Some((ModelId::new("m"), part)), ..small("a") }
}

#[tokio::test]
async fn small_work_is_done_while_large_work_fills_the_pool_and_the_line() {
    let (rig, gate) = (Rig::new(), Gate::default());
    let mut all = vec![rig.held(&gate, large("a"))];
    gate.holds(1);
    // There is a second thread, and it is not theirs.
    all.extend([rig.held(&gate, large("a")), rig.held(&gate, large("a"))]);
    assert_eq!(within(rig.pool.run(small("b"), || 7)).await, Ok(7));
    assert_eq!(
        (rig.metric("items_running{class=\"large\"}"), rig.metric("items_queued{class=\"large\"}")),
        (1, 2)
    );
    gate.open();
    for one in all {
        assert_eq!(one.done().await, Ok(()));
    }
    assert_eq!(rig.metric("items_total{class=\"large\",outcome=\"done\"}"), 3);
}

#[tokio::test]
async fn a_full_line_refuses_and_says_its_limit_but_not_what_is_done_already() {
    let (rig, gate) = (Rig::new(), Gate::default());
    let held = [rig.held(&gate, small("a")), rig.held(&gate, small("a"))];
    gate.holds(2);
    let waiting: Vec<_> = (0..3).map(|_| rig.held(&gate, small("a"))).collect();
    let full = Err(WorkError::Full { limit: 3 });
    assert_eq!(within(rig.pool.run(small("a"), || ())).await, full);
    let last = rig.held(&gate, WorkJob { must: true, ..small("a") });
    // Another tenant takes the place of the one who fills the queue.
    let other = rig.held(&gate, small("b"));
    assert_eq!(rig.metric("items_total{class=\"small\",outcome=\"refused\"}"), 2);
    gate.open();
    let mut refused = 0;
    for one in held.into_iter().chain(waiting).chain([last, other]) {
        refused += usize::from(one.done().await == full);
    }
    assert_eq!(refused, 1);
}

#[tokio::test]
async fn whoever_leaves_the_line_frees_its_place_and_its_work_is_not_begun() {
    let (rig, gate) = (Rig::new(), Gate::default());
    let held = [rig.held(&gate, small("a")), rig.held(&gate, small("a"))];
    gate.holds(2);
    let begun = Arc::new(AtomicUsize::new(0));
    let counted = || {
        let begun = Arc::clone(&begun);
        move || {
            begun.fetch_add(1, Ordering::SeqCst);
        }
    };
    let waiting: Vec<_> =
        (0..3).map(|_| Running::begin(rig.pool.run(small("a"), counted()))).collect();
    drop(waiting);
    assert_eq!(rig.metric("items_queued{class=\"small\"}"), 0);
    assert_eq!(rig.metric("items_total{class=\"small\",outcome=\"abandoned\"}"), 3);
    let last = Running::begin(rig.pool.run(small("a"), counted()));
    gate.open();
    assert_eq!(last.done().await, Ok(()));
    for one in held {
        assert_eq!(one.done().await, Ok(()));
    }
    assert_eq!(begun.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_deadline_strikes_in_the_line() {
    let (rig, gate) = (Rig::new(), Gate::default());
    let _held = [rig.held(&gate, small("a")), rig.held(&gate, small("a"))];
    gate.holds(2);
    let due = Some((Instant::now() + Duration::from_millis(5), Deadline::Queue));
    let job = WorkJob { due, ..small("a") };
    assert_eq!(within(rig.pool.run(job, || ())).await, Err(WorkError::Late(Deadline::Queue)));
    assert_eq!(rig.metric("items_queued{class=\"small\"}"), 0);
    assert_eq!(rig.metric("items_total{class=\"small\",outcome=\"timed_out\"}"), 1);
    gate.open();
}

#[tokio::test]
async fn a_panic_ends_that_work_and_no_thread() {
    let rig = Rig::new();
    for _ in 0..5 {
        let panics = within(rig.pool.run(small("a"), || panic!("on purpose"))).await;
        assert_eq!(panics, Err::<(), _>(WorkError::Panicked));
    }
    assert_eq!(within(rig.pool.run(small("a"), || 1)).await, Ok(1));
}

#[tokio::test]
async fn what_does_not_end_is_answered_counted_and_replaced_and_then_refused_by_name() {
    const HOUR: Duration = Duration::from_secs(3600);
    let (rig, gate) = (Rig::new(), Gate::default());
    let stuck = "threads_stuck{model=\"m\",part=\"chat_template\"}";
    let owner = (ModelId::new("m"), ModelPart::ChatTemplate);
    for n in 1..=STUCK_MAX {
        let endless = rig.held(&gate, owned(ModelPart::ChatTemplate));
        gate.holds(n);
        rig.pool.look(Duration::ZERO);
        assert_eq!(rig.metric(stuck), n as u64 - 1, "it has time left");
        rig.pool.look(HOUR);
        let limit = HOUR;
        assert_eq!(endless.done().await, Err(WorkError::Endless { owner: owner.clone(), limit }));
        assert_eq!(rig.metric(stuck), n as u64);
        // The pool has its size: two at once.
        let other = Gate::default();
        let two = [rig.held(&other, small("a")), rig.held(&other, small("a"))];
        other.holds(2);
        other.open();
        for one in two {
            assert_eq!(one.done().await, Ok(()));
        }
    }
    let refused = Err(WorkError::Stuck { owner });
    assert_eq!(within(rig.pool.run(owned(ModelPart::ChatTemplate), || ())).await, refused);
    assert_eq!(within(rig.pool.run(owned(ModelPart::Tokenizer), || ())).await, Ok(()));
    gate.open();
    rig.metric_is(stuck, 0).await;
    assert_eq!(within(rig.pool.run(owned(ModelPart::ChatTemplate), || ())).await, Ok(()));
    assert_eq!(rig.metric("items_total{class=\"small\",outcome=\"stuck\"}"), STUCK_MAX as u64);
    assert_eq!(rig.metric("items_running{class=\"small\"}"), 0);
}

#[tokio::test]
async fn what_waits_when_too_much_is_stuck_is_refused_as_well() {
    let (rig, gate) = (Rig::new(), Gate::default());
    let (mut under_way, mut waits) = (vec![], vec![]);
    for n in 1..=STUCK_MAX {
        under_way.push(rig.held(&gate, owned(ModelPart::ChatTemplate)));
        gate.holds(n);
        if n == STUCK_MAX {
            let other = rig.held(&gate, small("a"));
            gate.holds(n + 1);
            waits.push(Running::begin(rig.pool.run(owned(ModelPart::ChatTemplate), || ())));
            rig.pool.look(Duration::from_secs(3600));
            under_way.push(other);
        } else {
            rig.pool.look(Duration::from_secs(3600));
        }
    }
    for one in waits {
        let owner = (ModelId::new("m"), ModelPart::ChatTemplate);
        assert_eq!(one.done().await, Err(WorkError::Stuck { owner }));
    }
    gate.open();
}

#[tokio::test]
async fn the_watch_looks_by_itself() {
    let config = WorkConfig {
        threads: NonZeroUsize::new(2),
        time_max: Duration::from_millis(1),
        ..WorkConfig::default()
    };
    let registry = Registry::new();
    let pool = WorkPool::start(&config, WorkMetrics::register(&registry)).expect("threads");
    let gate = Gate::default();
    for _ in 0..2 {
        let held = gate.clone();
        let endless = within(pool.run(owned(ModelPart::Tokenizer), move || held.hold())).await;
        assert!(matches!(endless, Err(WorkError::Endless { .. })), "{endless:?}");
    }
    // Work that always ends has all the time it needs: it is never given up.
    gate.open();
    let patient = pool.run(small("a"), || std::thread::sleep(Duration::from_millis(20)));
    assert_eq!(within(patient).await, Ok(()));
}

#[tokio::test]
async fn letting_go_of_the_pool_waits_for_nothing_that_is_stuck() {
    let (rig, gate) = (Rig::new(), Gate::default());
    let held = rig.held(&gate, owned(ModelPart::ChatTemplate));
    gate.holds(1);
    drop(held);
    drop(rig);
    gate.open();
}

#[tokio::test]
async fn its_threads_have_the_stack_that_rendering_needs() {
    /// Uses about so much stack.
    #[inline(never)]
    fn deep(kib: usize) -> usize {
        let frame = std::hint::black_box([1_u8; 1024]);
        if kib == 0 { 0 } else { deep(kib - 1) + usize::from(frame[kib % 1024]) }
    }

    let rig = Rig::new();
    // A debug build's frames are larger than what they hold.
    let kib = interlock_text::STACK_BYTES / 1024 / 3;
    assert_eq!(within(rig.pool.run(small("a"), move || deep(kib))).await, Ok(kib));
}

#[tokio::test]
async fn what_is_large_is_let_go_of_on_a_thread_of_the_pools() {
    struct Telling(Arc<Mutex<Option<String>>>);
    impl Drop for Telling {
        fn drop(&mut self) {
            *lock(&self.0) = std::thread::current().name().map(str::to_owned);
        }
    }

    let rig = Rig::new();
    let told = Arc::new(Mutex::new(None));
    drop(DroppedInPool::new(Telling(Arc::clone(&told)), rig.pool.clone()));
    within(async {
        while lock(&told).is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(lock(&told).as_deref(), Some("work"));
}

#[test]
fn what_a_piece_of_work_costs_is_told_by_bytes_and_by_parts() {
    assert_eq!(Class::of(16 << 10, 1024), Class::Small);
    assert_eq!([Class::of((16 << 10) + 1, 1), Class::of(1, 1025)], [Class::Medium; 2]);
    assert_eq!([Class::of((256 << 10) + 1, 1), Class::of(1, 16_385)], [Class::Large; 2]);
}
