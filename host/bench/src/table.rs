//! Columns of text that line up, in any terminal font of fixed width.

use std::fmt;

use crate::stats::Spread;

/// Columns, from left to right.
#[derive(Debug, Default)]
pub(crate) struct TextTable {
    columns: Vec<Column>,
}

/// A heading of one or two lines, and a text for each row. Everything stands to the right.
#[derive(Debug)]
pub(crate) struct Column {
    /// Stands once over neighbouring columns that have the same.
    group: String,
    name: String,
    cells: Vec<String>,
}

impl TextTable {
    pub(crate) fn with(mut self, column: Column) -> Self {
        self.columns.push(column);
        self
    }
}

impl Column {
    pub(crate) fn new<C: fmt::Display>(name: &str, cells: impl IntoIterator<Item = C>) -> Self {
        let cells = cells.into_iter().map(|cell| cell.to_string()).collect();
        Self { group: String::new(), name: name.to_owned(), cells }
    }

    /// Numbers of the same accuracy; `-` where there is none.
    pub(crate) fn of_numbers(name: &str, numbers: &[Option<f64>]) -> Self {
        let digits = digits(numbers.iter().flatten().copied());
        let cell = |number: &Option<f64>| {
            number.map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
        };
        Self::new(name, numbers.iter().map(cell))
    }

    /// `mean ± deviation`, of the same accuracy.
    pub(crate) fn of_spreads(name: &str, spreads: &[Option<Spread>]) -> Self {
        let digits = digits(spreads.iter().flatten().map(|spread| spread.mean));
        let deviation = |spread: &Spread| format!("{:.digits$}", spread.deviation);
        let width = spreads.iter().flatten().map(|spread| deviation(spread).len()).max();
        let width = width.unwrap_or(0);
        let cell = |spread: &Option<Spread>| match spread {
            Some(spread) => format!("{:.digits$} ± {:>width$}", spread.mean, deviation(spread)),
            // Under the mean, with the width of what follows it.
            None => format!("-   {:width$}", ""),
        };
        Self::new(name, spreads.iter().map(cell))
    }

    pub(crate) fn under(mut self, group: &str) -> Self {
        self.group = group.to_owned();
        self
    }

    fn width(&self) -> usize {
        let widths = self.cells.iter().chain([&self.name]).map(|text| chars(text));
        widths.max().unwrap_or(0)
    }
}

/// One alone, where neighbours are of another unit.
pub(crate) fn shown(spread: &Spread) -> String {
    let digits = digits(std::iter::once(spread.mean));
    format!("{:.digits$} ± {:.digits$}", spread.mean, spread.deviation)
}

/// Three significant ones for the largest number, and one more where another is below its tenth.
fn digits(numbers: impl Iterator<Item = f64>) -> usize {
    let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
    for number in numbers {
        least = least.min(number.abs());
        most = most.max(number.abs());
    }
    let three = match most {
        most if most >= 100.0 => 0,
        most if most >= 10.0 => 1,
        most if most >= 1.0 => 2,
        _ => 3,
    };
    three + usize::from(least * 10.0 < most)
}

fn chars(text: &str) -> usize {
    text.chars().count()
}

const GAP: &str = "   ";

impl fmt::Display for TextTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths: Vec<usize> = self.columns.iter().map(Column::width).collect();
        // Neighbours of one group, by position of the first and number.
        let groups: Vec<&[Column]> = self.columns.chunk_by(|a, b| a.group == b.group).collect();
        let mut heading = String::new();
        let mut at = 0;
        for group in groups {
            let label = &group[0].group;
            let here = &mut widths[at..at + group.len()];
            let width = |here: &[usize]| here.iter().sum::<usize>() + GAP.len() * (here.len() - 1);
            here[0] += chars(label).saturating_sub(width(here));
            let gap = if at == 0 { "" } else { GAP };
            heading += &format!("{gap}{label:>width$}", width = width(here));
            at += group.len();
        }
        if !heading.trim().is_empty() {
            writeln!(f, "  {}", heading.trim_end())?;
        }
        let rows = self.columns.iter().map(|column| column.cells.len()).max().unwrap_or(0);
        line(f, self.columns.iter().map(|column| &column.name), &widths)?;
        for row in 0..rows {
            line(f, self.columns.iter().map(|column| &column.cells[row]), &widths)?;
        }
        Ok(())
    }
}

fn line<'a>(
    f: &mut fmt::Formatter<'_>,
    texts: impl Iterator<Item = &'a String>,
    widths: &[usize],
) -> fmt::Result {
    let texts: Vec<String> =
        texts.zip(widths).map(|(text, width)| format!("{text:>width$}")).collect();
    writeln!(f, "  {}", texts.join(GAP).trim_end())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn means_and_deviations_stand_under_each_other() {
        let spread = |a, b| Spread::of([a, b]);
        let table = TextTable::default()
            .with(Column::new("at once", [1, 16]))
            .with(
                Column::of_spreads("smallest", &[spread(1.0, 1.5), spread(10.0, 30.0)]).under("a"),
            )
            .with(Column::of_spreads("largest", &[None, spread(0.5, 0.6)]).under("a"))
            .with(Column::of_numbers("x", &[Some(1234.5), None]).under("a long name"));
        expect![[r#"
            a table
                                                    a   a long name
              at once        smallest         largest             x
                    1    1.25 ±  0.35       -                  1234
                   16   20.00 ± 14.14   0.550 ± 0.071             -
        "#]]
        .assert_eq(&format!("a table\n{table}"));
    }
}
