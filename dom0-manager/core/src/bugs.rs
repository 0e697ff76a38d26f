//! Known bugs that can be put back in, to show that the simulator finds them. Nothing of this is
//! compiled without the feature `seeded-bugs`, which only the simulator's proof uses.

/// A mistake in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, unreachable_pub)] // without the feature none is ever planted, and nobody else sees it
pub enum Bug {
    /// f equal votes decide.
    ThresholdTooLow,
    /// A second, later vote of the same replica counts too.
    SecondVoteCounts,
    /// Votes of replicas that are not in service count.
    VotesOfStrangersCount,
    /// A wrong vote that arrives after the decision convicts nobody.
    LateLieIgnored,
    /// A wrong root at a checkpoint convicts nobody.
    WrongRootIgnored,
    /// A replica that is only silent is convicted.
    SilenceConvicts,
    /// As soon as votes differ, whoever voted otherwise than the leader is convicted.
    MinorityConvictedEarly,
    /// A passive that executed is promoted by recovery.
    DirtyPassiveRecovers,
    /// Fresh replicas take over without having been verified.
    UnverifiedSuccessor,
    /// The old active is destroyed when its recovery begins.
    RecoveryDestroysFirst,
    /// An update goes to the passives when the local active reports it.
    UpdateBeforeAgreement,
    /// Being brought up to date, a passive is taken past undecided requests.
    PassivePassesUndecided,
    /// The last update that a replica has is sent to it again.
    UpdateSentTwice,
    /// Updates are forgotten although a passive has not applied them.
    BufferTrimmedTooFar,
    /// `HELP_ME` is not renewed.
    HelpNotRenewed,
    /// A promoted replica executes what it executed before.
    ExecutedAgainAfterPromotion,
    /// Nobody takes the place of an active that left.
    PromotionForgotten,
    /// An active that stepped in for another seat stays when that seat has its own again.
    SurplusActiveStays,
    /// A reply leaves before every member has the request.
    ReplyBeforeDelivery,
    /// A reply leaves before its record is on disk everywhere.
    ReplyBeforeDisk,
    /// The local replica's bytes are taken for the agreed ones.
    LocalBytesTrusted,
    /// A manager outside the primary view goes on.
    MinorityGoesOn,
    /// A restarted manager does not wait for the members of the last view.
    StaleStateDecides,
    /// A manager that returns keeps records that others may not have.
    JoinerKeepsItsTail,
    /// A manager that takes over the group's state forgets what was delivered meanwhile.
    BacklogForgotten,
    /// A replica that outlived its manager is kept although it went past what is agreed.
    SurvivorBeyondTheAgreed,
    /// A replica that outlived its manager counts as clean, whatever it executed.
    SurvivorAsClean,
    /// A request that is delivered twice is ordered twice.
    RepeatedDeliveryOrdered,
    /// Clients' keys are ignored.
    KeysIgnored,
    /// The same key with another request gets the first one's answer.
    KeyMatchesAnyRequest,
    /// Replicas in the middle of an aborted write stay in service.
    AbortKeepsTouched,
    /// The agreed time is the proposed one.
    TimeGoesBack,
    /// More than f votes that differ are no reason to abort: further replicas are asked.
    DisagreementAsksOn,
    /// Who differs from the leader is convicted where more than f votes must be wrong.
    DisagreementConvicts,
    /// A vote on an aborted request convicts, as one that differs from a decision.
    LateVoteOnAbortedConvicts,
    /// A replica that has other requests before one is judged as if it had begun that one.
    TimeCountsFromTheQueue,
    /// Others have no more time for a request that took the first voter long.
    FirstVotesTimeForgotten,
    /// Whoever executed a read that was aborted is rebuilt.
    AbortedReadCosts,
    /// A read that takes longer than it may is not aborted.
    SlowReadNeverEnds,
    /// Replicas are not told that a read is aborted.
    ReadIsNotStopped,
    /// A write that f+1 replicas hang in is tried on those that never touched it.
    HungWriteTakesTheClean,
    /// Requests are let in however long they will wait.
    AdmissionNeverRefuses,
    /// A request is decided although a write before it is not.
    DecidedBeforeWrites,
    /// Votes of replicas whose states contain an aborted write count.
    TaintedVotesCount,
    /// What was said of a request before the write before it was decided is not counted then.
    ReleasedNotCounted,
    /// The reply to a read waits for all reads before it.
    ReadWaitsForReads,
    /// The reply to a read leaves before what it shows is on disk everywhere.
    ReadBeforeItsWrites,
    /// Whoever sends many keys makes forget the oldest of all, whose ever they are.
    KeysOfOthersForgotten,
}

#[cfg(feature = "seeded-bugs")]
impl Bug {
    /// All of them.
    pub const ALL: [Bug; 48] = [
        Bug::ThresholdTooLow,
        Bug::SecondVoteCounts,
        Bug::VotesOfStrangersCount,
        Bug::LateLieIgnored,
        Bug::WrongRootIgnored,
        Bug::SilenceConvicts,
        Bug::MinorityConvictedEarly,
        Bug::DirtyPassiveRecovers,
        Bug::UnverifiedSuccessor,
        Bug::RecoveryDestroysFirst,
        Bug::UpdateBeforeAgreement,
        Bug::PassivePassesUndecided,
        Bug::UpdateSentTwice,
        Bug::BufferTrimmedTooFar,
        Bug::HelpNotRenewed,
        Bug::ExecutedAgainAfterPromotion,
        Bug::PromotionForgotten,
        Bug::SurplusActiveStays,
        Bug::ReplyBeforeDelivery,
        Bug::ReplyBeforeDisk,
        Bug::LocalBytesTrusted,
        Bug::MinorityGoesOn,
        Bug::StaleStateDecides,
        Bug::JoinerKeepsItsTail,
        Bug::BacklogForgotten,
        Bug::SurvivorBeyondTheAgreed,
        Bug::SurvivorAsClean,
        Bug::RepeatedDeliveryOrdered,
        Bug::KeysIgnored,
        Bug::KeyMatchesAnyRequest,
        Bug::AbortKeepsTouched,
        Bug::TimeGoesBack,
        Bug::DisagreementAsksOn,
        Bug::DisagreementConvicts,
        Bug::LateVoteOnAbortedConvicts,
        Bug::TimeCountsFromTheQueue,
        Bug::FirstVotesTimeForgotten,
        Bug::AbortedReadCosts,
        Bug::SlowReadNeverEnds,
        Bug::ReadIsNotStopped,
        Bug::HungWriteTakesTheClean,
        Bug::AdmissionNeverRefuses,
        Bug::DecidedBeforeWrites,
        Bug::TaintedVotesCount,
        Bug::ReleasedNotCounted,
        Bug::ReadWaitsForReads,
        Bug::ReadBeforeItsWrites,
        Bug::KeysOfOthersForgotten,
    ];
}

#[cfg(feature = "seeded-bugs")]
impl std::fmt::Display for Bug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The name of the variant as words.
        for (i, c) in format!("{self:?}").char_indices() {
            if c.is_uppercase() && i > 0 {
                write!(f, " {}", c.to_lowercase())?;
            } else {
                write!(f, "{}", c.to_lowercase())?;
            }
        }
        Ok(())
    }
}

#[cfg(feature = "seeded-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in every core that this thread runs, or removes it.
#[cfg(feature = "seeded-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is in.
#[cfg(feature = "seeded-bugs")]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether this bug is in: never.
#[cfg(not(feature = "seeded-bugs"))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}
