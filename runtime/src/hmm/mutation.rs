//! Deliberate faults, for tests only.
//!
//! Each [`Mutation`] breaks one rule of the protocol. A model that does not fail under the mutation that it is
//! about proves nothing, so every model is run both ways. Outside tests [`mutated`] is the constant `false`.

/// A rule of the protocol, broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // Most are set by the models only, which an ordinary test build leaves out.
pub(super) enum Mutation {
    /// Callbacks run first, ranges become invalid afterwards.
    CallbacksBeforeMarking,
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
mod set {
    use super::Mutation;
    use std::cell::Cell;

    // std's, not the model's: all threads of a model run on the operating system's thread of its test.
    std::thread_local! {
        static CURRENT: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    pub(in super::super) fn mutated(mutation: Mutation) -> bool {
        CURRENT.with(|current| current.get() == Some(mutation))
    }

    #[cfg(any(loom, shuttle))]
    pub(in super::super) fn mutate(mutation: Option<Mutation>) {
        CURRENT.with(|current| current.set(mutation));
    }
}

#[cfg(all(test, any(loom, shuttle)))]
pub(super) use set::mutate;
#[cfg(test)]
pub(super) use set::mutated;
