//! What must hold of every simulation, whatever the policies say.

use std::collections::BTreeMap;
use std::time::Duration;

use interlock_policy_api::{Ceilings, Closing};
use interlock_request::{Finish, Outcome};

use super::Observed;
use super::end::SimulatedEnd;
use super::recorder::{EndedRequest, Recording};

/// What was checked, in the words of the report.
pub(super) const CHECKED: [&str; 6] = [
    "every request has one end, and its client was told",
    "every policy that was asked got one account, and nobody else did",
    "every admitted request ended once, and was forgotten by all",
    "usage told to a client is usage that was accounted",
    "nobody waited longer than the limit on queues and one pass",
    "nothing is left in the engine",
];

/// More of a kind would only repeat it.
const SHOWN: usize = 5;

/// All that does not hold.
pub(super) fn violations(
    seen: &Observed,
    recording: &Recording,
    ceilings: &Ceilings,
) -> Vec<String> {
    let recorded = recording.recorded();
    let mut found = vec![];
    let mut kind = |mut of_a_kind: Vec<String>| {
        let more = of_a_kind.len().saturating_sub(SHOWN);
        of_a_kind.truncate(SHOWN);
        found.append(&mut of_a_kind);
        if more > 0 {
            found.push(format!("... and {more} more like these"));
        }
    };

    let lost = seen.asked.iter().filter(|asked| asked.end == SimulatedEnd::Lost);
    kind(lost.map(|asked| format!("{} had neither an end nor an error", asked.id)).collect());

    let wrong = recorded.accounts_owed.iter().filter(|((policy, _), account)| {
        let owed = account.owed && recorded.accounting.contains(policy);
        account.accounts > 1 || (owed && account.accounts == 0)
    });
    let told = |((policy, serial), account): (&(String, u64), &super::recorder::AccountsOwed)| {
        format!("policy {policy:?} got {} accounts of request {serial}", account.accounts)
    };
    kind(wrong.map(told).collect());

    let twice = recorded.ended.iter().filter(|(_, ended)| ended.len() != 1);
    let told = |(serial, ended): (&u64, &Vec<EndedRequest>)| {
        format!("request {serial} ended {} times", ended.len())
    };
    kind(twice.map(told).collect());
    // By the simulation's own, and where there are policies by one of those at least.
    let forgotten = 1 + u32::from(recorded.policies);
    let remembered = recorded
        .ended
        .keys()
        .filter(|serial| recorded.forgotten.get(serial).is_none_or(|times| *times < forgotten));
    kind(
        remembered
            .map(|serial| format!("request {serial} has ended and was not forgotten"))
            .collect(),
    );

    let ended: BTreeMap<&str, &EndedRequest> =
        recorded.ended.values().flatten().map(|ended| (ended.id.as_str(), ended)).collect();
    kind(
        seen.asked
            .iter()
            .filter_map(|asked| unequal(asked, ended.get(asked.id.as_str())))
            .collect(),
    );

    if let Some(limit) = ceilings.deadlines.queue {
        let bound = limit + seen.rested.work.longest + Duration::from_millis(2);
        let starved = recorded.ended.values().flatten().filter_map(|ended| {
            let waited = ended.summary.queue_time.filter(|waited| *waited > bound)?;
            Some(format!(
                "{} waited {waited:?} for its first pass, the limit is {limit:?}",
                ended.id
            ))
        });
        kind(starved.collect());
    }
    kind(seen.rested.left.clone());
    found
}

fn unequal(asked: &super::client::RequestSeen, ended: Option<&&EndedRequest>) -> Option<String> {
    let id = &asked.id;
    let answered = matches!(asked.end, SimulatedEnd::Answered { .. });
    let Some(ended) = ended else {
        return answered.then(|| format!("{id} was answered and never accounted"));
    };
    let usage = ended.summary.usage;
    if usage.generated_tokens > ended.tokens_max {
        let (got, most) = (usage.generated_tokens, ended.tokens_max);
        return Some(format!("{id} generated {got} tokens, it was to have {most} at most"));
    }
    let completed = match &ended.summary.closing {
        Closing::Ended(Outcome::Completed(finish)) => Some(*finish),
        _ => None,
    };
    if answered && completed.is_none() {
        return Some(format!(
            "{id} was answered and accounted as {}",
            ended.summary.closing.as_str()
        ));
    }
    // What a filter cut off was generated, and is not in the answer.
    let told = asked.usage.filter(|_| completed.is_some_and(|finish| finish != Finish::Filtered));
    let accounted = (usage.prompt_tokens, usage.generated_tokens);
    let told = told.filter(|told| *told != accounted)?;
    Some(format!("{id} was told that it used {told:?} tokens, {accounted:?} were accounted"))
}
