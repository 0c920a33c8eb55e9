//! Columns of text that line up, in any terminal font of fixed width.

use std::fmt;

/// Rows under a heading. Columns stand to the left unless they are said to be numbers.
#[derive(Debug, Clone, Default)]
pub struct Table {
    heading: Vec<String>,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns. A name that begins with `>` is one of numbers, which stand to
    /// the right.
    pub fn new(columns: &[&str]) -> Self {
        Self {
            heading: columns.iter().map(|name| name.trim_start_matches('>').to_owned()).collect(),
            right: columns.iter().map(|name| name.starts_with('>')).collect(),
            rows: vec![],
        }
    }

    /// One more row. Cells that are missing stay empty.
    pub fn row<C: Into<String>>(&mut self, cells: impl IntoIterator<Item = C>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Is there no row?
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nameless = self.heading.iter().all(String::is_empty);
        let lines = || (!nameless).then_some(&self.heading).into_iter().chain(&self.rows);
        let widths: Vec<usize> = (0..self.heading.len())
            .map(|column| {
                let cells = lines().filter_map(|line| line.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for line in lines() {
            let mut text = String::new();
            for (column, width) in widths.iter().enumerate() {
                let cell = line.get(column).map_or("", String::as_str);
                let gap = if column == 0 { "  " } else { "   " };
                text += gap;
                text += &if self.right[column] {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                };
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn numbers_stand_to_the_right_and_the_rest_to_the_left() {
        let mut table = Table::new(&["phase", ">p50", "what"]);
        table.row(["admit", "4.9 µs", "fast"]);
        table.row(["stream_guard", "12.0 µs"]);
        expect![[r#"
            a table
              phase              p50   what
              admit           4.9 µs   fast
              stream_guard   12.0 µs
        "#]]
        .assert_eq(&format!("a table\n{table}"));
    }
}
