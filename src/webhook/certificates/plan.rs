//! What the Secret holds, what is to be done about it, and the doing of it: no clock, no cluster.
//!
//! One CA signs; the bundle (`ca.crt`) holds every CA that a client must trust for now. A rotation goes
//! ```text
//!   Keep --CA due, or its key lost--> StageCa      bundle: old + new, the leaf is still signed by the old
//!        --both configurations carry the new one for a while--> Promote    the leaf is signed by the new
//!        --no leaf of the old one can be alive any more--> DropOldCa       bundle: new
//! ```
//! so that at no moment a replica serves a leaf whose CA some API server does not know, however far one of
//! them lags behind.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::issue::{Authority, Certificate, Fingerprint, IssueError, Leaf, Lifetimes, after, bundle_pem};

/// The keys of the Secret.
pub mod keys {
    /// The chain that is served.
    pub const CERTIFICATE: &str = "tls.crt";
    /// Its key.
    pub const KEY: &str = "tls.key";
    /// Every CA that belongs into the caBundle, the one that signs first.
    pub const BUNDLE: &str = "ca.crt";
    /// The key of the CA that signs.
    pub const AUTHORITY_KEY: &str = "ca.key";
    /// The key of the CA that will sign next, while it is being published.
    pub const NEXT_AUTHORITY_KEY: &str = "next-ca.key";
    /// When the CAs that sign no longer leave the bundle, as RFC 3339.
    pub const RETIRE_AT: &str = "previous-ca-until";
    /// All of them.
    pub const ALL: [&str; 6] = [CERTIFICATE, KEY, BUNDLE, AUTHORITY_KEY, NEXT_AUTHORITY_KEY, RETIRE_AT];
}

/// A bundle grows no further than this by rotations that somebody forces one after another. The CA of a leaf that
/// another replica still serves would be left out beyond it, so it is more than anybody forces within the
/// life of a leaf; twenty kilobytes are nothing to a webhook configuration.
const MAX_BUNDLE: usize = 32;

/// The contents of the Secret, as far as they can be used.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// Every CA that belongs into the caBundle.
    pub bundle: Vec<Certificate>,
    /// The CA that signs leaves.
    pub signing: Option<Authority>,
    /// The CA that is being published to sign next.
    pub next: Option<Authority>,
    /// What is to be served.
    pub leaf: Option<Leaf>,
    /// When the CAs of the bundle that are neither `signing` nor `next` may go.
    pub retire_at: Option<Timestamp>,
    /// What cannot be used, one line each.
    pub damage: Vec<String>,
}

impl Stored {
    /// Reads the data of the Secret. What cannot be used is missing and named in `damage`.
    pub fn parse(data: &BTreeMap<String, Vec<u8>>) -> Self {
        let mut damage = Vec::new();
        let mut text = |key: &str, wanted: bool| match data.get(key).map(|b| String::from_utf8(b.clone())) {
            Some(Ok(text)) if !text.is_empty() => Some(text),
            Some(Err(_)) => {
                damage.push(format!("{key} is not text"));
                None
            }
            _ if wanted => {
                damage.push(format!("{key} is missing"));
                None
            }
            _ => None,
        };
        let certificate = text(keys::CERTIFICATE, true);
        let key = text(keys::KEY, true);
        let bundle = text(keys::BUNDLE, true);
        let next = text(keys::NEXT_AUTHORITY_KEY, false);
        // A key that was lost is missing for good while the next CA is on its way.
        let authority = text(keys::AUTHORITY_KEY, next.is_none());
        let retire_at = text(keys::RETIRE_AT, false);
        let mut note = |key: &str, why: &dyn std::fmt::Display| damage.push(format!("{key}: {why}"));

        let bundle = bundle
            .and_then(|pem| {
                let bundle = Certificate::parse_all(&pem).map_err(|e| note(keys::BUNDLE, &e)).ok()?;
                // A text that was cut off within a certificate gives the ones before it without an error.
                if pem.matches("-----BEGIN").count() != bundle.len() {
                    note(keys::BUNDLE, &"is cut off, or holds more than certificates");
                }
                Some(bundle)
            })
            .unwrap_or_default();
        let mut authority_of = |key: &'static str, pem: Option<String>| {
            pem.and_then(|pem| Authority::find(&pem, &bundle).map_err(|e| note(key, &e)).ok())
        };
        let signing = authority_of(keys::AUTHORITY_KEY, authority);
        let next = authority_of(keys::NEXT_AUTHORITY_KEY, next);
        let leaf = certificate.zip(key).and_then(|(certificate, key)| {
            Leaf::new(&certificate, &key, &bundle).map_err(|e| note(keys::CERTIFICATE, &e)).ok()
        });
        let retire_at = retire_at
            .and_then(|text| text.trim().parse().map_err(|e: jiff::Error| note(keys::RETIRE_AT, &e)).ok());
        Self { bundle, signing, next, leaf, retire_at, damage }
    }

    /// Returns the data of the Secret. A key that is not in it must not be in the Secret.
    pub fn data(&self) -> BTreeMap<String, Vec<u8>> {
        let Self { bundle, signing, next, leaf, retire_at, damage: _ } = self;
        let mut data = BTreeMap::new();
        let mut put = |key: &str, text: String| data.insert(key.to_owned(), text.into_bytes());
        put(keys::BUNDLE, bundle_pem(bundle));
        if let Some(leaf) = leaf {
            put(keys::CERTIFICATE, leaf.pair().certificate_pem().to_owned());
            put(keys::KEY, leaf.key_pem().to_owned());
        }
        if let Some(signing) = signing {
            put(keys::AUTHORITY_KEY, signing.key_pem().to_owned());
        }
        if let Some(next) = next {
            put(keys::NEXT_AUTHORITY_KEY, next.key_pem().to_owned());
        }
        if let Some(retire_at) = retire_at {
            put(keys::RETIRE_AT, retire_at.to_string());
        }
        data
    }

    /// Returns the leaf where a client could accept it at `now`, going by the dates.
    pub fn live_leaf(&self, now: Timestamp) -> Option<&Leaf> {
        self.leaf.as_ref().filter(|leaf| leaf.is_alive(now))
    }

    fn is_used(&self, certificate: &Certificate) -> bool {
        let by = |authority: &Option<Authority>| {
            authority.as_ref().is_some_and(|authority| authority.certificate() == certificate)
        };
        by(&self.signing)
            || by(&self.next)
            || self.leaf.as_ref().is_some_and(|leaf| leaf.issuer() == certificate)
    }

    /// Says whether `certificate` has served its time at `now`.
    fn may_go(&self, certificate: &Certificate, now: Timestamp) -> bool {
        !self.is_used(certificate)
            && (certificate.not_after <= now || self.retire_at.is_some_and(|date| date <= now))
    }

    fn retiring(&self) -> bool {
        self.bundle.iter().any(|certificate| !self.is_used(certificate))
    }

    /// Adds `certificate` unless it is in the bundle or has expired. One that has not begun is taken, too:
    /// it may be this replica's clock that is wrong.
    fn trust(&mut self, certificate: Certificate, now: Timestamp) {
        if now < certificate.not_after && !self.bundle.contains(&certificate) {
            self.bundle.push(certificate);
        }
    }

    /// Keeps the CAs that no longer sign until `until` at the least.
    fn retire_after(&mut self, until: Timestamp) {
        if self.retiring() {
            self.retire_at = Some(self.retire_at.map_or(until, |date| date.max(until)));
        }
    }

    /// Puts the CAs in order, the one that signs first, so that the same contents give the same text.
    fn sort(&mut self) {
        let place = |certificate: &Certificate| {
            let is = |authority: &Option<Authority>| {
                authority.as_ref().is_some_and(|authority| authority.certificate() == certificate)
            };
            if is(&self.signing) {
                0
            } else if is(&self.next) {
                1
            } else {
                2
            }
        };
        let mut bundle = self.bundle.clone();
        bundle.sort_by_key(place);
        self.bundle = bundle;
    }
}

/// Which CAs the two configurations carry.
#[derive(Clone, Debug, Default)]
pub struct Carried {
    /// Those that every webhook of both configurations carries, and since when that has been seen.
    pub everywhere: BTreeMap<Fingerprint, Timestamp>,
    /// Those that at least one webhook carries.
    pub anywhere: Vec<Certificate>,
}

impl Carried {
    /// Takes in what was just read: the CAs of each webhook, and whether both configurations could be read.
    pub fn observe(&mut self, webhooks: &[Vec<Certificate>], complete: bool, now: Timestamp) {
        let mut seen = BTreeSet::new();
        self.anywhere = webhooks
            .iter()
            .flatten()
            .filter(|certificate| seen.insert(certificate.fingerprint))
            .cloned()
            .collect();
        let before = std::mem::take(&mut self.everywhere);
        self.everywhere = self
            .anywhere
            .iter()
            .filter(|certificate| complete && webhooks.iter().all(|bundle| bundle.contains(certificate)))
            .map(|certificate| certificate.fingerprint)
            // A clock that was set back must not make anything wait for the old time to come again.
            .map(|print| (print, before.get(&print).map_or(now, |since| (*since).min(now))))
            .collect();
    }

    /// Says whether both configurations carry `certificate`.
    pub fn has(&self, certificate: &Certificate) -> bool {
        self.everywhere.contains_key(&certificate.fingerprint)
    }

    /// Says whether both have carried it for so long that every API server has heard of it.
    pub fn has_settled(&self, certificate: &Certificate, settle: SignedDuration, now: Timestamp) -> bool {
        self.settles_at(certificate, settle).is_some_and(|moment| moment <= now)
    }

    /// Returns when both will have carried it for `settle`; `None` where they do not carry it.
    pub fn settles_at(&self, certificate: &Certificate, settle: SignedDuration) -> Option<Timestamp> {
        self.everywhere.get(&certificate.fingerprint).map(|since| after(*since, settle))
    }
}

/// How long things take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// How long certificates live.
    pub lifetimes: Lifetimes,
    /// How long a CA must have been seen in both configurations before a leaf of it is served: API servers
    /// hear of a change one after another.
    pub settle: SignedDuration,
}

/// Everything a decision goes by.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The Secret; `None` where there is none.
    pub stored: Option<&'a Stored>,
    /// The last contents of the Secret that this replica could use.
    pub remembered: Option<&'a Stored>,
    /// What this replica serves.
    pub serving: Option<&'a Leaf>,
    /// What the configurations carry.
    pub carried: &'a Carried,
    /// The DNS names that the leaf must be for.
    pub names: &'a [String],
}

/// What is to be done to the Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// A new CA and a leaf of it; what the configurations carry stays in the bundle.
    Create,
    /// The contents that this replica remembers, and with `rotate` a new CA on its way as well.
    Restore {
        /// The Secret was deleted, which is how a person asks for new keys.
        rotate: bool,
    },
    /// A new leaf by the CA that signs.
    RenewLeaf,
    /// A new CA into the bundle. It signs nothing yet.
    StageCa,
    /// The staged CA signs from now on, first of all a new leaf.
    Promote,
    /// The CA of the leaf that this replica serves back into the bundle.
    TrustServed,
    /// CAs of which no leaf can be alive any more out of the bundle.
    DropOldCa,
    /// What cannot be used, and is not needed, out of the Secret; a date for CAs that sign no longer.
    Tidy,
}

impl Step {
    /// Returns what it does, for the log.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Keep => "nothing to do",
            Self::Create => "created a certificate authority and a certificate",
            Self::Restore { rotate: false } => "put the last usable contents back",
            Self::Restore { rotate: true } => "put the last usable contents back and staged a new authority",
            Self::RenewLeaf => "renewed the certificate",
            Self::StageCa => "staged a new certificate authority",
            Self::Promote => "the new certificate authority signs from now on",
            Self::TrustServed => "put the authority of the served certificate back into the bundle",
            Self::DropOldCa => "dropped a certificate authority that signs no longer",
            Self::Tidy => "put the contents in order",
        }
    }
}

/// Decides the next step. After [`apply`] it is asked again, until it says [`Step::Keep`].
pub fn plan(view: &View<'_>, terms: &Terms, now: Timestamp) -> Step {
    let remembers = view.remembered.is_some_and(|remembered| remembered.live_leaf(now).is_some());
    let Some(stored) = view.stored else {
        return if remembers { Step::Restore { rotate: true } } else { Step::Create };
    };
    let signing = stored.signing.as_ref().filter(|signing| signing.certificate().is_valid(now));
    let Some(leaf) = &stored.leaf else {
        return match signing {
            _ if remembers => Step::Restore { rotate: false },
            Some(_) => Step::RenewLeaf,
            None => Step::Create,
        };
    };
    if view.serving.is_some_and(|serving| serving.is_alive(now) && !stored.bundle.contains(serving.issuer()))
    {
        return Step::TrustServed;
    }
    // With a leaf that nobody accepts there is nothing to lose by haste.
    let dead = !leaf.is_alive(now);
    if let Some(next) = stored.next.as_ref().filter(|next| next.certificate().is_valid(now)) {
        let published = view.carried.has_settled(next.certificate(), terms.settle, now);
        if published || (dead && signing.is_none()) {
            return Step::Promote;
        }
    }
    match signing {
        Some(signing) if dead || !leaf.is_for(view.names) => return renew_or_replace(signing, terms, now),
        // Near the end of its CA a new leaf may end no later than the old one.
        Some(signing)
            if leaf.certificate().is_due(now)
                && signing.leaf_end(&terms.lifetimes, now) > after(leaf.certificate().not_after, SECOND) =>
        {
            return Step::RenewLeaf;
        }
        None if dead => return Step::Create,
        _ => {}
    }
    let next_is_usable = stored.next.as_ref().is_some_and(|next| next.certificate().is_valid(now));
    if !next_is_usable && signing.is_none_or(|signing| signing.certificate().is_due(now)) {
        return Step::StageCa;
    }
    if stored.bundle.iter().any(|certificate| stored.may_go(certificate, now)) {
        return Step::DropOldCa;
    }
    if !stored.damage.is_empty() || (stored.retiring() && stored.retire_at.is_none()) {
        return Step::Tidy;
    }
    Step::Keep
}

/// Certificates know no fractions of a second.
const SECOND: SignedDuration = SignedDuration::from_secs(1);

/// A CA in its last moments signs nothing that would live: then everything is made anew.
fn renew_or_replace(signing: &Authority, terms: &Terms, now: Timestamp) -> Step {
    if signing.leaf_end(&terms.lifetimes, now) > after(now, SECOND) { Step::RenewLeaf } else { Step::Create }
}

/// Returns the contents of the Secret after `step`.
///
/// # Errors
/// When a key or certificate cannot be made.
pub fn apply(step: Step, view: &View<'_>, terms: &Terms, now: Timestamp) -> Result<Stored, IssueError> {
    let lifetimes = &terms.lifetimes;
    let mut new = match (step, view.remembered) {
        (Step::Create, _) => Stored::default(),
        (Step::Restore { .. }, Some(remembered)) => remembered.clone(),
        _ => view.stored.cloned().unwrap_or_default(),
    };
    if !std::mem::take(&mut new.damage).is_empty() {
        // Part of the bundle may be lost.
        trust_what_others_may_serve(&mut new, view, lifetimes, now);
    }
    match step {
        Step::Keep => {}
        Step::Create => {
            let authority = Authority::issue(lifetimes, now)?;
            new.bundle.push(authority.certificate().clone());
            new.leaf = Some(authority.sign(view.names, lifetimes, now)?);
            new.signing = Some(authority);
            trust_what_others_may_serve(&mut new, view, lifetimes, now);
        }
        Step::Restore { rotate } => {
            trust_what_others_may_serve(&mut new, view, lifetimes, now);
            if rotate && new.next.is_none() && new.bundle.len() < MAX_BUNDLE {
                stage(&mut new, lifetimes, now)?;
            }
        }
        Step::RenewLeaf => {
            let signing = new.signing.as_ref().ok_or(IssueError::NoAuthority)?;
            let other = new.leaf.as_ref().filter(|leaf| leaf.issuer() != signing.certificate());
            let until = other.map(|leaf| leaf.certificate().not_after);
            let names = names_for(&new, view, now);
            new.leaf = Some(signing.sign(&names, lifetimes, now)?);
            if let Some(until) = until {
                new.retire_after(until);
            }
        }
        Step::StageCa => stage(&mut new, lifetimes, now)?,
        Step::Promote => {
            let next = new.next.take().ok_or(IssueError::NoAuthority)?;
            let last = new.leaf.as_ref().map(|leaf| leaf.certificate().not_after);
            let names = names_for(&new, view, now);
            new.leaf = Some(next.sign(&names, lifetimes, now)?);
            new.signing = Some(next);
            let until = after(now, lifetimes.leaf);
            new.retire_after(last.map_or(until, |last| last.max(until)));
        }
        Step::TrustServed => {
            if let Some(serving) = view.serving {
                new.trust(serving.issuer().clone(), now);
                new.retire_after(serving.certificate().not_after);
            }
        }
        Step::DropOldCa => {
            let old = new.clone();
            new.bundle.retain(|certificate| !old.may_go(certificate, now));
        }
        Step::Tidy => new.retire_after(after(now, lifetimes.leaf)),
    }
    if !new.retiring() {
        new.retire_at = None;
    }
    new.sort();
    Ok(new)
}

fn stage(new: &mut Stored, lifetimes: &Lifetimes, now: Timestamp) -> Result<(), IssueError> {
    let authority = Authority::issue(lifetimes, now)?;
    new.bundle.push(authority.certificate().clone());
    new.next = Some(authority);
    Ok(())
}

/// Whoever makes the Secret anew may know less than the other replicas: what the configurations carry and
/// what is served here stays trusted for as long as a leaf of it may live.
fn trust_what_others_may_serve(new: &mut Stored, view: &View<'_>, lifetimes: &Lifetimes, now: Timestamp) {
    let stored = view.stored.into_iter().flat_map(|stored| stored.bundle.iter().cloned());
    let remembered = view.remembered.into_iter().flat_map(|stored| stored.bundle.iter().cloned());
    let serving = view.serving.map(|serving| serving.issuer().clone());
    let carried = view.carried.anywhere.iter().cloned();
    for certificate in serving.into_iter().chain(stored).chain(remembered).chain(carried) {
        if new.bundle.len() < MAX_BUNDLE {
            new.trust(certificate, now);
        }
    }
    new.retire_after(after(now, lifetimes.leaf));
}

/// Returns the names of a new leaf. While the old one lives, its names stay in: two versions of the guard
/// that want different names, as during an upgrade, would else renew it in turns for ever.
fn names_for(stored: &Stored, view: &View<'_>, now: Timestamp) -> Vec<String> {
    let mut names = view.names.to_vec();
    if let Some(leaf) = stored.live_leaf(now).filter(|leaf| !leaf.is_for(view.names)) {
        let more: Vec<_> =
            leaf.certificate().names.iter().filter(|name| !names.contains(name)).take(16).cloned().collect();
        names.extend(more);
    }
    names
}

/// Says whether this replica may go over to `leaf`: only where the API servers know its CA, or where it
/// loses nothing.
pub fn may_serve(
    leaf: &Leaf,
    serving: Option<&Leaf>,
    carried: &Carried,
    settle: SignedDuration,
    now: Timestamp,
) -> bool {
    let Some(serving) = serving.filter(|serving| serving.is_alive(now)) else { return true };
    leaf.is_alive(now)
        && (leaf.issuer() == serving.issuer() || carried.has_settled(leaf.issuer(), settle, now))
}

/// How often something may be written that somebody else keeps changing: a few times at once, then slowly.
#[derive(Clone, Debug)]
pub struct Allowance {
    every: SignedDuration,
    left: u32,
    since: Option<Timestamp>,
    refused: bool,
}

/// No write for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// How long to wait.
    pub wait: SignedDuration,
    /// Says whether it is the first since the allowance was whole.
    pub first: bool,
}

impl Allowance {
    /// So many writes at once.
    pub const BURST: u32 = 5;

    /// Returns an allowance of one more write each `every`, which is a second at the least.
    pub fn new(every: SignedDuration) -> Self {
        Self { every: every.max(SECOND), left: Self::BURST, since: None, refused: false }
    }

    /// Takes one write.
    ///
    /// # Errors
    /// How long to wait for the next one.
    pub fn take(&mut self, now: Timestamp) -> Result<(), Refusal> {
        // A clock that was set back starts the wait anew.
        let since = self.since.filter(|since| *since <= now).unwrap_or(now);
        let refills = now.duration_since(since).as_secs() / self.every.as_secs();
        self.left = self.left.saturating_add(u32::try_from(refills).unwrap_or(Self::BURST));
        let since = if self.left >= Self::BURST {
            self.left = Self::BURST;
            self.refused = false;
            now
        } else {
            after(since, SignedDuration::from_secs(refills * self.every.as_secs()))
        };
        self.since = Some(since);
        if self.left == 0 {
            let first = !std::mem::replace(&mut self.refused, true);
            return Err(Refusal { wait: after(since, self.every).duration_since(now), first });
        }
        self.left -= 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
