//! Steps of a template that cost what they do.
//!
//! The engine charges fuel for each instruction and each byte, but takes a list for as large as
//! it is long: one that holds another twice, which holds another twice, forty times over, costs
//! nothing to make, and for ever to print, compare or sort; one nested a hundred thousand deep
//! ends the process when it is dropped. So what a template is compiled to is run with checks put
//! in between:
//!
//! - What makes a list or a dict is followed by [`MADE`]: it is at most [`DEPTH_MAX`] deep, it is
//!   a list and no promise of one (slices and sums are lazy), and it has been paid for by all
//!   that is in it, however often the same.
//! - What looks into values (comparisons, `~`, filters, tests) is preceded by [`WEIGHED`], which
//!   charges for all that is in them.
//! - Namespaces are the only values that change, so that a loop can build on what it built
//!   before. They are ours, and hold no other namespace: nothing can contain itself.
//!
//! The instructions are the engine's internals, which is why its version is pinned.

mod names;
mod namespace;

use std::collections::BTreeSet;

use minijinja::machinery::{Instruction, Instructions};
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, State, Value};

use crate::fuel::{DEPTH_MAX, TooDeep, UNITS_OF_A_STEP, weigh};
use crate::jinja::operators::{self, BoundMethod};
use crate::namespace::Namespace;
use crate::python::methods;
use names::{COMPARING, ITERATING, MAKING_NONE, SHALLOW, SORTING};
use namespace::{namespace, set};

// No template can spell these names.
const MADE: &str = "<made>";
const WEIGHED: &str = "<weighed>";
const SORTED: &str = "<sorted>";
const INDEXED: &str = "<indexed>";
const SET: &str = "<set>";
const ITERATED_FIRST: &str = "<iterated_first>";

/// Teaches an environment what metered instructions call.
pub(crate) fn teach(environment: &mut Environment<'_>) {
    environment.add_filter(MADE, made);
    environment.add_filter(WEIGHED, |state: &State, values: &Value| {
        weigh(state, values, 1).map(|()| values.clone())
    });
    environment.add_filter(SORTED, |state: &State, values: &Value| {
        weigh(state, values, compares(values)).map(|()| values.clone())
    });
    environment.add_filter(INDEXED, indexed);
    environment.add_filter(SET, set);
    environment.add_function("namespace", namespace);
    environment.add_filter(ITERATED_FIRST, |arguments: &Value| {
        let first = arguments.get_item_by_index(0)?;
        operators::iterated(&first).map(|_| arguments.clone())
    });
}

/// The same program, with a check before each operator whose cost depends on its operands.
pub(crate) fn metered<'s>(program: &Instructions<'s>) -> Instructions<'s> {
    let steps: Vec<_> = (0..).map_while(|at| program.get(at)).collect();
    let targets: BTreeSet<_> = steps.iter().filter_map(|step| target(step)).collect();
    let expand = |at: usize| {
        // Where both operands may come from elsewhere, the step before says nothing.
        let joined = u32::try_from(at).is_ok_and(|at| targets.contains(&at));
        let before = if joined { None } else { at.checked_sub(1).map(|before| steps[before]) };
        expanded(steps[at], before)
    };
    let expanded: Vec<_> = (0..steps.len()).map(expand).collect();
    let mut starts = vec![0_u32];
    for steps in &expanded {
        starts.push(starts[starts.len() - 1] + u32::try_from(steps.len()).unwrap_or(u32::MAX));
    }
    let mut metered = Instructions::new(program.name(), program.source());
    for (at, steps) in (0..).zip(expanded) {
        for mut step in steps {
            retarget(&mut step, &starts);
            match (program.get_span(at), program.get_line(at)) {
                (Some(span), _) => metered.add_with_span(step, span),
                (None, Some(line)) => {
                    metered.add_with_line(step, u16::try_from(line).unwrap_or(u16::MAX))
                }
                (None, None) => metered.add(step),
            };
        }
    }
    metered
}

fn target(step: &Instruction<'_>) -> Option<u32> {
    match step {
        Instruction::Iterate(target)
        | Instruction::Jump(target)
        | Instruction::JumpIfFalse(target)
        | Instruction::JumpIfFalseOrPop(target)
        | Instruction::JumpIfTrueOrPop(target)
        | Instruction::BuildMacro(_, target, _) => Some(*target),
        _ => None,
    }
}

fn retarget(step: &mut Instruction<'_>, starts: &[u32]) {
    match step {
        Instruction::Iterate(target)
        | Instruction::Jump(target)
        | Instruction::JumpIfFalse(target)
        | Instruction::JumpIfFalseOrPop(target)
        | Instruction::JumpIfTrueOrPop(target)
        | Instruction::BuildMacro(_, target, _) => *target = starts[*target as usize],
        _ => {}
    }
}

/// A step with its checks. `before`: the step in front of it, if it always is.
fn expanded<'s>(step: &Instruction<'s>, before: Option<&Instruction<'s>>) -> Vec<Instruction<'s>> {
    use Instruction as I;

    let checked = |check| I::ApplyFilter(check, Some(1), !0);
    // Takes `count` operands off the stack and, checked, puts them back, with their number on top.
    let operands = |count: Option<u16>, check| {
        [I::BuildList(count.map(usize::from)), checked(check), I::UnpackLists(1)]
    };
    let constant = matches!(before, Some(I::LoadConst(value)) if is_small(value));
    let named = matches!(before, Some(I::LoadConst(value)) if value.kind() == ValueKind::String);
    let step = step.clone();
    match step {
        I::Eq | I::Ne if constant => vec![step],
        I::Eq
        | I::Ne
        | I::Lt
        | I::Lte
        | I::Gt
        | I::Gte
        | I::In
        | I::CompareAndPreserve(_)
        | I::Mul => {
            let check = match comparison(&step) {
                ComparisonKind::Equality => WEIGHED,
                ComparisonKind::Order => operators::ORDERED,
                ComparisonKind::Containment => operators::CONTAINED,
                ComparisonKind::None => operators::MULTIPLIED,
            };
            let [list, check, back] = operands(Some(2), check);
            let made = matches!(step, I::Mul).then(|| checked(MADE));
            [list, check, back, I::DiscardTop, step].into_iter().chain(made).collect()
        }
        I::StringConcat => vec![I::ApplyFilter(operators::CONCATENATED, Some(2), !0)],
        I::Rem => vec![I::ApplyFilter(operators::REMAINDER, Some(2), !0)],
        I::PushLoop(_) => vec![checked(operators::ITERATED), step],
        I::GetAttr(name)
            if methods::OF_DICTS.contains(&name) || methods::OF_TEXTS.contains(&name) =>
        {
            let attribute = I::ApplyFilter(operators::ATTRIBUTE, Some(2), !0);
            vec![I::LoadConst(Value::from(name)), attribute, checked(MADE)]
        }
        // A text is indexed by numbers.
        I::GetItem if constant && named => vec![step],
        I::GetItem => {
            let [list, check, back] = operands(Some(2), INDEXED);
            vec![list, check, back, I::DiscardTop, step]
        }
        I::Slice => {
            let [list, check, back] = operands(Some(4), INDEXED);
            vec![list, checked(operators::SLICED), check, back, I::DiscardTop, step, checked(MADE)]
        }
        // With a text or number on one side it is no list.
        I::Add if constant => vec![step],
        I::BuildList(_)
        | I::BuildMap(_)
        | I::BuildTuple(_)
        | I::Add
        | I::CallFunction(..)
        | I::CallObject(_) => vec![step, checked(MADE)],
        I::ApplyFilter(name, count, local) => {
            let mut steps = Vec::new();
            let count = match count {
                _ if !ITERATING.contains(&name) => count,
                Some(1) => {
                    steps.push(checked(operators::ITERATED));
                    count
                }
                count => {
                    steps.extend(operands(count, ITERATED_FIRST));
                    None
                }
            };
            let count = if SHALLOW.contains(&name) || name == "tojson" {
                count
            } else {
                let check = if SORTING.contains(&name) { SORTED } else { WEIGHED };
                steps.extend(operands(count, check));
                None
            };
            steps.push(I::ApplyFilter(name, count, local));
            if !MAKING_NONE.contains(&name) {
                steps.push(checked(MADE));
            }
            steps
        }
        I::PerformTest(name, count, local) if COMPARING.contains(&name) => {
            let mut steps: Vec<_> = operands(count, WEIGHED).into();
            steps.push(I::PerformTest(name, None, local));
            steps
        }
        // Of a loop; it compares. Other methods are `python::method`, which weighs.
        I::CallMethod("changed", count) => {
            let mut steps: Vec<_> = operands(count, WEIGHED).into();
            steps.push(I::CallMethod("changed", None));
            steps
        }
        I::CallMethod(..) => vec![step, checked(MADE)],
        I::SetAttr(name) => {
            vec![I::LoadConst(Value::from(name)), I::ApplyFilter(SET, Some(3), !0), I::DiscardTop]
        }
        step => vec![step],
    }
}

/// What an operator has to compare in its operands, on which its cost depends.
enum ComparisonKind {
    None,
    Equality,
    Order,
    Containment,
}

fn comparison(step: &Instruction<'_>) -> ComparisonKind {
    use Instruction as I;

    match step {
        I::Eq | I::Ne => ComparisonKind::Equality,
        I::Lt | I::Lte | I::Gt | I::Gte => ComparisonKind::Order,
        I::In => ComparisonKind::Containment,
        // The type of the operator cannot be named: ==, !=, four of order, `in` and `not in`.
        I::CompareAndPreserve(operator) => match *operator as u8 {
            0 | 1 => ComparisonKind::Equality,
            2..=5 => ComparisonKind::Order,
            _ => ComparisonKind::Containment,
        },
        _ => ComparisonKind::None,
    }
}

/// Too little to look at to be worth a check.
fn is_small(value: &Value) -> bool {
    const BYTES_SMALL: usize = 256;

    match value.kind() {
        ValueKind::String => value.as_str().is_some_and(|text| text.len() <= BYTES_SMALL),
        ValueKind::Undefined | ValueKind::None | ValueKind::Bool | ValueKind::Number => true,
        _ => false,
    }
}

/// How often sorting looks at an item of its first argument.
fn compares(arguments: &Value) -> u64 {
    let items = arguments.get_item_by_index(0).ok().and_then(|first| first.len()).unwrap_or(0);
    u64::from(usize::BITS - items.leading_zeros()) + 1
}

/// What was made: a list instead of a promise, not too deep, and paid for.
fn made(state: &State, value: &Value) -> Result<Value, Error> {
    let value = match value.kind() {
        ValueKind::Iterable => {
            let count = value.len();
            // Before the first is made: the length may be a product of two.
            state.consume_fuel(count.unwrap_or(0) as u64 / 2)?;
            let mut items = Vec::new();
            for item in value.try_iter()? {
                state.consume_fuel(u64::from(count.is_none_or(|count| items.len() >= count)))?;
                items.push(item);
            }
            Value::from(items)
        }
        _ => value.clone(),
    };
    settled(state, &value, 0)?;
    Ok(value)
}

fn settled(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    let contained = |item: &Value| {
        if item.downcast_object_ref::<Namespace>().is_some() {
            let error = "a namespace cannot be in a list, a dict or a namespace";
            return Err(Error::new(ErrorKind::InvalidOperation, error));
        }
        settled(state, item, depth + 1)
    };
    if depth > DEPTH_MAX {
        return Err(Error::from(ErrorKind::InvalidOperation).with_source(TooDeep));
    }
    if let Some(method) = value.downcast_object_ref::<BoundMethod>() {
        return contained(method.value());
    }
    match value.kind() {
        ValueKind::Map => {
            state.consume_fuel(1 + value.len().unwrap_or(0) as u64)?;
            for key in value.try_iter()? {
                contained(&value.get_item(&key)?)?;
                contained(&key)?;
            }
        }
        ValueKind::Seq | ValueKind::Iterable => {
            state.consume_fuel(1 + value.len().unwrap_or(0) as u64 / 2)?;
            value.try_iter()?.try_for_each(|item| contained(&item))?;
        }
        _ => {}
    }
    Ok(())
}

/// Letters of a text are found by counting them.
fn indexed(state: &State, operands: &Value) -> Result<Value, Error> {
    let of = operands.get_item_by_index(0)?;
    let bytes = of.as_str().map_or(0, str::len);
    state.consume_fuel(bytes as u64 / UNITS_OF_A_STEP)?;
    Ok(operands.clone())
}
