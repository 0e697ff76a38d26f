//! What clients did and saw, and whether one order explains it. Pure.
//!
//! Every object is a list that is only appended to: the comments about one user. A read shows all of it, so the
//! list at the end is the order of all appends, and a read with k comments took place after the k-th and before the
//! next. That order must keep to real time (linearizability): what began after another operation had ended comes
//! after it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a client wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// A text that nobody else appends.
    Append(String),
    Read,
}

/// One operation on one list.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) list: u64,
    pub(crate) wish: Wish,
    /// Since the clients began.
    pub(crate) invoked: Duration,
    /// None if there was no answer.
    pub(crate) answer: Option<Answer>,
}

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) at: Duration,
    /// Which gateway gave it.
    pub(crate) gateway: usize,
    /// When the attempt began that was answered.
    pub(crate) sent: Duration,
    /// The texts that a read showed.
    pub(crate) seen: Vec<String>,
}

/// What is wrong with a history.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("LOST: {0} was acknowledged and is not there")]
    Lost(String),
    #[error("TWICE: {0} is there {1} times")]
    Twice(String, usize),
    #[error("{0} is there, and nobody appended it to list {1}")]
    FromNowhere(String, u64),
    #[error("list {0} was {1:?} for a reader, and is {2:?} in the end")]
    NoPrefix(u64, Vec<String>, Vec<String>),
    #[error("list {list}: {later} began after {earlier} had ended, and comes before it")]
    Order {
        list: u64,
        earlier: String,
        later: String,
    },
}

/// Holds all operations against the lists at the end, each in its order.
pub(crate) fn check(
    operations: &[Operation],
    lists: &BTreeMap<u64, Vec<String>>,
) -> Result<(), Violation> {
    let mut by_list: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        by_list.entry(operation.list).or_default().push(operation);
    }
    for (list, operations) in by_list {
        let last = lists.get(&list).map_or(&[][..], Vec::as_slice);
        once_each(list, &operations, last)?;
        in_order(list, &operations, last)?;
    }
    Ok(())
}

fn once_each(list: u64, operations: &[&Operation], last: &[String]) -> Result<(), Violation> {
    let mut wanted = BTreeSet::new();
    for operation in operations {
        let Wish::Append(text) = &operation.wish else {
            continue;
        };
        wanted.insert(text);
        match last.iter().filter(|t| *t == text).count() {
            0 if operation.answer.is_some() => return Err(Violation::Lost(text.clone())),
            0 | 1 => {}
            times => return Err(Violation::Twice(text.clone(), times)),
        }
    }
    match last.iter().find(|text| !wanted.contains(text)) {
        Some(text) => Err(Violation::FromNowhere(text.clone(), list)),
        None => Ok(()),
    }
}

/// Where an operation is in the order: appends at even places, reads between them.
fn place(operation: &Operation, last: &[String], list: u64) -> Result<Option<usize>, Violation> {
    Ok(match (&operation.wish, &operation.answer) {
        (Wish::Append(text), _) => last.iter().position(|t| t == text).map(|at| 2 * at + 2),
        (Wish::Read, Some(answer)) => {
            if !last.starts_with(&answer.seen) {
                let (seen, last) = (answer.seen.clone(), last.to_vec());
                return Err(Violation::NoPrefix(list, seen, last));
            }
            Some(2 * answer.seen.len() + 1)
        }
        (Wish::Read, None) => None,
    })
}

fn in_order(list: u64, operations: &[&Operation], last: &[String]) -> Result<(), Violation> {
    let mut placed = Vec::new();
    for operation in operations {
        if let Some(place) = place(operation, last, list)? {
            placed.push((place, *operation));
        }
    }
    // In the order of their ends: of all that ended before another began, the one that comes last counts.
    let mut ended: Vec<_> = (placed.iter())
        .filter_map(|(place, o)| Some((o.answer.as_ref()?.at, *place, *o)))
        .collect();
    ended.sort_by_key(|(at, ..)| *at);
    placed.sort_by_key(|(_, o)| o.invoked);
    let mut ended = ended.into_iter().peekable();
    let mut furthest: Option<(usize, &Operation)> = None;
    for (place, operation) in placed {
        while let Some((_, other, by)) = ended.next_if(|(at, ..)| *at < operation.invoked) {
            if furthest.is_none_or(|(f, _)| other > f) {
                furthest = Some((other, by));
            }
        }
        if let Some((other, by)) = furthest.filter(|(other, _)| place < *other) {
            let named = |o: &Operation, place: usize| match &o.wish {
                Wish::Append(text) => format!("the append of {text} (place {place})"),
                Wish::Read => format!("a read of {} comments at {:?}", place / 2, o.invoked),
            };
            return Err(Violation::Order {
                list,
                earlier: named(by, other),
                later: named(operation, place),
            });
        }
    }
    Ok(())
}

/// The longest time without an answer that lasted, or began, after `from`, and its end.
pub(crate) fn longest_silence(
    operations: &[Operation],
    from: Duration,
    until: Duration,
) -> Duration {
    let answers = operations.iter().filter_map(|o| o.answer.as_ref());
    let mut times: Vec<Duration> = answers
        .map(|a| a.at)
        .filter(|at| (from..=until).contains(at))
        .collect();
    times.push(until);
    times.sort();
    let mut before = from;
    let mut longest = Duration::ZERO;
    for at in times {
        longest = longest.max(at.saturating_sub(before));
        before = at;
    }
    longest
}

/// Which gateways answered attempts that began, and were answered, between these times.
pub(crate) fn answering(
    operations: &[Operation],
    from: Duration,
    until: Duration,
) -> BTreeMap<usize, usize> {
    let mut count = BTreeMap::new();
    for answer in operations.iter().filter_map(|o| o.answer.as_ref()) {
        if answer.sent >= from && answer.at <= until {
            *count.entry(answer.gateway).or_default() += 1;
        }
    }
    count
}

/// The self-test of this module is part of the suite: its program has no test harness of its own.
pub(crate) fn trials() -> Vec<libtest_mimic::Trial> {
    let one = |name: &str, test: fn() -> anyhow::Result<()>| {
        libtest_mimic::Trial::test(name, move || test().map_err(|e| format!("{e:#}").into()))
    };
    vec![
        one("the_checker_takes_what_one_order_explains", sound),
        one("the_checker_finds_what_no_order_explains", unsound),
    ]
}

fn operation(wish: Wish, invoked: u64, ended: Option<u64>, seen: &[&str]) -> Operation {
    Operation {
        list: 1,
        wish,
        invoked: Duration::from_millis(invoked),
        answer: ended.map(|at| Answer {
            at: Duration::from_millis(at),
            gateway: 0,
            sent: Duration::from_millis(invoked),
            seen: seen.iter().map(ToString::to_string).collect(),
        }),
    }
}

fn append(text: &str, invoked: u64, ended: Option<u64>) -> Operation {
    operation(Wish::Append(text.to_owned()), invoked, ended, &[])
}

fn lists(texts: &[&str]) -> BTreeMap<u64, Vec<String>> {
    BTreeMap::from([(1, texts.iter().map(ToString::to_string).collect())])
}

fn sound() -> anyhow::Result<()> {
    let history = [
        append("a", 0, Some(10)),
        append("b", 5, Some(15)),
        // Nobody knows of it; it took effect late.
        append("c", 6, None),
        append("d", 7, None),
        operation(Wish::Read, 8, Some(9), &["b"]),
        operation(Wish::Read, 20, Some(30), &["b", "a"]),
    ];
    check(&history, &lists(&["b", "a", "c"]))?;
    Ok(())
}

fn unsound() -> anyhow::Result<()> {
    let find = |history: &[Operation], last: &[&str]| check(history, &lists(last));
    let a = append("a", 0, Some(1));
    anyhow::ensure!(find(std::slice::from_ref(&a), &[]) == Err(Violation::Lost("a".into())));
    anyhow::ensure!(
        find(std::slice::from_ref(&a), &["a", "a"]) == Err(Violation::Twice("a".into(), 2))
    );
    anyhow::ensure!(find(std::slice::from_ref(&a), &["a", "x"]).is_err());
    let stale = operation(Wish::Read, 5, Some(6), &[]);
    let found = find(&[a.clone(), stale], &["a"]);
    anyhow::ensure!(matches!(found, Err(Violation::Order { .. })), "{found:?}");
    let gone = operation(Wish::Read, 5, Some(6), &["b"]);
    let found = find(&[a.clone(), append("b", 2, None), gone], &["a", "b"]);
    anyhow::ensure!(matches!(found, Err(Violation::NoPrefix(..))), "{found:?}");
    let found = find(&[a, append("b", 2, Some(3))], &["b", "a"]);
    anyhow::ensure!(matches!(found, Err(Violation::Order { .. })), "{found:?}");
    Ok(())
}
