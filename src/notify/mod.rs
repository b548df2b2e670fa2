//! Notifications: tells people beyond the cluster what happens, and is never in the way of it.
//!
//! ```text
//!  watcher ─▶ Notifier ─┬▶ mailbox (bounded) ─▶ task ─▶ webhook, Slack
//!    (never waits)      └▶ board (what is the case) ─▶ task ─▶ Alertmanager
//! ```
//!
//! Handing over takes a lock for some microseconds and never waits for a receiver. Each receiver has a queue and a
//! task of its own. What cannot be sent in time is given up and counted; rollbacks go on without it. Who is told is in a
//! file, which is read again when it changes ([`keep`]); while it cannot be used the one before goes on.

mod board;
mod body;
pub mod config;
mod deliver;
mod mailbox;

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use self::{
    board::Board,
    config::{Config, ConfigError, Filter, Receiver, Sort},
    deliver::{Sender, count},
    mailbox::Mailbox,
};
use crate::{
    core::{
        breaker::Why,
        key::Key,
        notification::{BreakerNews, Kind, Notification},
    },
    post::PostError,
    shutdown::Shutdown,
    telemetry::{Metrics, ReceiverLabels},
};

pub use deliver::Failed;

/// So many ids are remembered, so that nothing is told twice.
const REMEMBERED: usize = 4096;

/// How often the gauges are set.
const GAUGE_PERIOD: Duration = Duration::from_secs(2);

/// How fast everything goes. Tests have it faster.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The pause after the first attempt; it doubles.
    pub first: Duration,
    /// The longest pause.
    pub most: Duration,
    /// The most attempts.
    pub attempts: usize,
    /// What could not be sent for so long is given up.
    pub lifetime: Duration,
    /// How often an Alertmanager is told again what lasts.
    pub resend: Duration,
    /// How often the file is read.
    pub poll: Duration,
    /// How long what waits may be sent after the shutdown.
    pub drain: Duration,
    /// The most notifications that wait for one receiver.
    pub queue: usize,
}

impl Default for Pace {
    /// 0.5 s to 60 s between 10 attempts within 15 minutes; told again each minute; 1,000 may wait.
    fn default() -> Self {
        Self {
            first: Duration::from_millis(500),
            most: Duration::from_secs(60),
            attempts: 10,
            lifetime: Duration::from_secs(15 * 60),
            resend: Duration::from_secs(60),
            poll: Duration::from_secs(10),
            drain: Duration::from_secs(5),
            queue: 1000,
        }
    }
}

/// Where what a receiver is told is kept until it is sent.
#[derive(Debug)]
enum Outlet {
    /// One after the other.
    Queue(Mailbox),
    /// What is the case.
    Board(Board),
}

impl Outlet {
    fn new(sort: Sort, pace: &Pace) -> Self {
        match sort {
            Sort::Alertmanager => Self::Board(Board::default()),
            Sort::Webhook | Sort::Slack => Self::Queue(Mailbox::new(pace.queue)),
        }
    }

    const fn fits(&self, sort: Sort) -> bool {
        matches!(
            (self, sort),
            (Self::Board(_), Sort::Alertmanager) | (Self::Queue(_), Sort::Webhook | Sort::Slack)
        )
    }

    fn len(&self) -> usize {
        match self {
            Self::Queue(mailbox) => mailbox.len(),
            Self::Board(board) => board.len(),
        }
    }
}

/// One receiver as those see it who hand over.
#[derive(Clone, Debug)]
struct Route {
    name: String,
    filter: Filter,
    outlet: Arc<Outlet>,
}

/// Takes what is to be told, and never waits. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Notifier(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    routes: ArcSwap<Vec<Route>>,
    told: Mutex<Told>,
    breaker: Mutex<BreakerNews>,
    metrics: Metrics,
}

/// The ids of what was told lately, the oldest first.
#[derive(Debug, Default)]
struct Told {
    ids: HashSet<String>,
    order: VecDeque<String>,
}

impl Told {
    /// Says whether it is new, and remembers it.
    fn is_new(&mut self, id: &str) -> bool {
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

impl Notifier {
    /// Returns one that tells nobody: nobody is configured.
    pub const fn off() -> Self {
        Self(None)
    }

    /// Returns one that tells nobody until [`keep`] says whom.
    pub fn new(metrics: Metrics) -> Self {
        Self(Some(Arc::new(Shared {
            routes: ArcSwap::default(),
            told: Mutex::default(),
            breaker: Mutex::default(),
            metrics,
        })))
    }

    /// Says whether anybody is told anything.
    pub fn has_receivers(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| !shared.routes.load().is_empty())
    }

    /// Tells it to everybody who wants it, once: what was told already is left out.
    pub fn tell(&self, notification: Notification) {
        let Some(shared) = &self.0 else { return };
        if !lock(&shared.told).is_new(&notification.id) {
            return;
        }
        let notification = Arc::new(notification);
        shared.for_each_wanting(&notification, |route| match &*route.outlet {
            Outlet::Queue(mailbox) => {
                if mailbox.put(Arc::clone(&notification)).is_some() {
                    count(&shared.metrics, &route.name, "dropped", 1);
                }
            }
            Outlet::Board(_) => {}
        });
    }

    /// Says that it is so, and still: for those who are told what is the case.
    pub fn lasts(&self, notification: &Notification, now: Timestamp) {
        let Some(shared) = &self.0 else { return };
        let mut kept: Option<Arc<Notification>> = None;
        shared.for_each_wanting(notification, |route| {
            let Outlet::Board(board) = &*route.outlet else { return };
            let kept = kept.get_or_insert_with(|| Arc::new(notification.clone()));
            if !board.put(kept, now) {
                count(&shared.metrics, &route.name, "dropped", 1);
            }
        });
    }

    /// Says how the cluster is: which Deployments are stuck, and why the breaker is open.
    pub fn look(&self, stuck: impl Iterator<Item = Key>, open: Option<&Why>, now: Timestamp) {
        let Some(shared) = &self.0 else { return };
        let stuck: BTreeSet<Key> = stuck.collect();
        shared.boards(|board| board.stuck_are(&stuck, now));
        let Some(news) = lock(&shared.breaker).look(open, now) else { return };
        match news.kind {
            Kind::BreakerOpen => self.lasts(&news, now),
            _ => shared.boards(|board| board.breaker_is_closed(now)),
        }
        self.tell(news);
    }

    /// Says that another process leads: it tells from here on.
    pub fn step_down(&self) {
        let Some(shared) = &self.0 else { return };
        *lock(&shared.breaker) = BreakerNews::default();
        shared.boards(Board::clear);
    }
}

impl Shared {
    fn for_each_wanting(&self, notification: &Notification, mut then: impl FnMut(&Route)) {
        self.routes.load().iter().filter(|route| route.filter.lets_through(notification)).for_each(&mut then);
    }

    fn boards(&self, then: impl Fn(&Board)) {
        for route in self.routes.load().iter() {
            if let Outlet::Board(board) = &*route.outlet {
                then(board);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells by the file at `path`, which is read again when it changes, until the shutdown starts and what waits is
/// sent, or could not be within some seconds.
///
/// A file that cannot be used stops nothing: those who were told before are told on.
pub async fn keep(path: PathBuf, notifier: Notifier, pace: Pace, shutdown: Shutdown) {
    let Some(shared) = notifier.0 else { return };
    let mut keeper = Keeper { path, shared, pace, config: None, complaint: None, running: HashMap::new() };
    let mut next_read = Instant::now();
    loop {
        if Instant::now() >= next_read {
            keeper.read().await;
            next_read = Instant::now() + pace.poll;
        }
        keeper.set_gauges();
        tokio::select! {
            () = shutdown.started() => break,
            () = sleep(pace.poll.min(GAUGE_PERIOD)) => {}
        }
    }
    let _ = timeout(pace.drain, keeper.drained()).await;
    keeper.stop();
}

/// The tasks, and what they were made from.
struct Keeper {
    path: PathBuf,
    shared: Arc<Shared>,
    pace: Pace,
    config: Option<Config>,
    complaint: Option<String>,
    running: HashMap<String, Running>,
}

struct Running {
    receiver: Receiver,
    outlet: Arc<Outlet>,
    task: JoinHandle<()>,
}

impl Keeper {
    async fn read(&mut self) {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || config::load(&path)).await;
        let why = match read {
            Ok(Ok(config)) => match self.take(config).await {
                Ok(()) => {
                    self.complaint = None;
                    self.shared.metrics.notifications_valid.set(1);
                    return;
                }
                Err(error) => error.to_string(),
            },
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        self.shared.metrics.notifications_valid.set(0);
        if self.complaint.as_ref() != Some(&why) {
            tracing::error!(
                why,
                "the notifications cannot be configured; what was configured before goes on"
            );
            self.complaint = Some(why);
        }
    }

    /// Goes by `config` from here on. A receiver that has not changed is left alone; one that has takes over what waits.
    async fn take(&mut self, config: Config) -> Result<(), PostError> {
        if self.config.as_ref() == Some(&config) && self.running.values().all(|r| !r.task.is_finished()) {
            return Ok(());
        }
        let (metrics, pace) = (&self.shared.metrics, self.pace);
        let mut senders = Vec::with_capacity(config.receivers.len());
        for receiver in &config.receivers {
            senders.push(Sender::new(receiver.clone(), metrics.clone(), pace)?);
        }
        let mut routes = Vec::with_capacity(senders.len());
        let mut before = std::mem::take(&mut self.running);
        for (receiver, sender) in config.receivers.iter().zip(senders) {
            let old = before.remove(&receiver.name);
            let running = match old {
                Some(old) if old.receiver == *receiver && !old.task.is_finished() => old,
                old => {
                    let outlet = match old {
                        Some(Running { outlet, task, .. }) => {
                            task.abort();
                            // Gone for certain: two of them would take from each other.
                            let _ = task.await;
                            Some(outlet).filter(|outlet| outlet.fits(receiver.sort))
                        }
                        None => None,
                    };
                    let outlet = outlet.unwrap_or_else(|| Arc::new(Outlet::new(receiver.sort, &pace)));
                    let task = tokio::spawn(sender.run(Arc::clone(&outlet)));
                    Running { receiver: receiver.clone(), outlet, task }
                }
            };
            let (name, filter) = (receiver.name.clone(), receiver.filter.clone());
            routes.push(Route { name: name.clone(), filter, outlet: Arc::clone(&running.outlet) });
            self.running.insert(name, running);
        }
        self.shared.routes.store(Arc::new(routes));
        before.into_iter().for_each(|(name, old)| self.end(&name, old));
        tracing::info!(receivers = ?self.config_names(&config), "notifications are configured");
        self.config = Some(config);
        Ok(())
    }

    fn config_names<'a>(&self, config: &'a Config) -> Vec<&'a str> {
        config.receivers.iter().map(|receiver| receiver.name.as_str()).collect()
    }

    /// Ends a receiver that is not in the file any more, with what waits for it.
    fn end(&self, name: &str, running: Running) {
        running.task.abort();
        let labels = ReceiverLabels { receiver: name.to_owned() };
        self.shared.metrics.notification_queue.remove(&labels);
        if let Outlet::Queue(mailbox) = &*running.outlet {
            count(&self.shared.metrics, name, "dropped", mailbox.len());
        }
    }

    fn set_gauges(&self) {
        for (name, running) in &self.running {
            let labels = ReceiverLabels { receiver: name.clone() };
            let waiting = i64::try_from(running.outlet.len()).unwrap_or(i64::MAX);
            self.shared.metrics.notification_queue.get_or_create(&labels).set(waiting);
        }
    }

    /// Completes when nothing waits in a queue. Alerts end by themselves, or the next leader goes on with them.
    async fn drained(&self) {
        let empty = |running: &Running| match &*running.outlet {
            Outlet::Queue(mailbox) => mailbox.is_empty(),
            Outlet::Board(_) => true,
        };
        while !self.running.values().all(empty) {
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn stop(self) {
        for running in self.running.values() {
            running.task.abort();
            let left = running.outlet.len();
            if left > 0 && matches!(&*running.outlet, Outlet::Queue(_)) {
                count(&self.shared.metrics, &running.receiver.name, "gave_up", left);
                tracing::error!(receiver = running.receiver.name, left, "notifications are left behind");
            }
        }
    }
}

/// What became of a test message.
#[derive(Debug)]
pub struct Tried {
    /// The receiver's name.
    pub receiver: String,
    /// What it understands.
    pub sort: &'static str,
    /// What it answered.
    pub result: Result<http::StatusCode, Failed>,
}

/// Sends a test message to each receiver of the file at `path`, or to the one with this name: once, one after the
/// other. Returns what each said; nothing where there is none of the name.
///
/// # Errors
/// When the file cannot be used.
pub async fn try_out(path: PathBuf, only: Option<&str>) -> Result<Vec<Tried>, ConfigError> {
    let config = config::load(&path)?;
    let mut tried = Vec::new();
    let wanted = |receiver: &Receiver| only.is_none_or(|only| only == receiver.name);
    for receiver in config.receivers.into_iter().filter(wanted) {
        let (name, sort) = (receiver.name.clone(), receiver.sort.word());
        let result = match Sender::new(receiver, Metrics::default(), Pace::default()) {
            Ok(sender) => sender.send_once(&Notification::test(Timestamp::now())).await,
            Err(error) => Err(Failed::ForGood(error.to_string())),
        };
        tried.push(Tried { receiver: name, sort, result });
    }
    Ok(tried)
}
