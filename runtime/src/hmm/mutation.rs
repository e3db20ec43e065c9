//! Deliberate faults, for tests only.
//!
//! Each [`Mutation`] breaks one rule of the protocol. A model that does not fail under the mutation that it is
//! about proves nothing, so every model is run both ways. Outside tests [`mutated`] is the constant `false`.

/// A rule of the protocol, broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "set by tests only, some of them by the models only")]
pub(super) enum Mutation {
    /// Callbacks run first, ranges become invalid afterwards.
    CallbacksBeforeMarking,
    /// A service asks whether it must retry, and takes the update lock afterwards.
    RetryOutsideTheLock,
    /// What is registered during an invalidation starts out valid.
    InsertionIgnoresFlights,
    /// Unregistering does not wait for callbacks that run.
    NoGracePeriod,
    /// Releasing does not ask whether somebody else did.
    ReleaseUnclaimed,
    /// A waiter goes to sleep without looking again.
    SleepWithoutLookingAgain,
    /// A refused invalidation is not ended.
    RefusalLeftOpen,
}

#[cfg(not(test))]
#[inline(always)]
pub(super) const fn mutated(_: Mutation) -> bool {
    false
}

#[cfg(test)]
std::thread_local! {
    // std's, not the model's: all threads of a model run on the operating system's thread of its test.
    static CURRENT: std::cell::Cell<Option<Mutation>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
pub(super) fn mutated(mutation: Mutation) -> bool {
    CURRENT.with(|current| current.get() == Some(mutation))
}

/// Breaks a rule on this thread, or none.
#[cfg(test)]
pub(super) fn mutate(mutation: Option<Mutation>) {
    CURRENT.with(|current| current.set(mutation));
}
