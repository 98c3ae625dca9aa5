//! Tables: boxes of ASCII, as the original printed them (`PrettyTable` 0.7 of Python: centred cells, a frame).

/// A table whose rows are in the order in which they are printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Table { header: header.iter().map(|&cell| cell.to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row; a cell may have several lines.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// The box, without a line end.
    pub(crate) fn render(&self) -> String {
        let widths: Vec<usize> = (0..self.header.len())
            .map(|column| {
                let cells = std::iter::once(&self.header).chain(&self.rows).filter_map(|row| row.get(column));
                cells.flat_map(|cell| cell.lines()).map(|line| printable(line).chars().count()).max().unwrap_or(0)
            })
            .collect();
        let dashes: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
        let rule = format!("+{}+", dashes.join("+"));
        let mut lines = vec![rule.clone()];
        lines.extend(row_lines(&self.header, &widths));
        lines.push(rule.clone());
        lines.extend(self.rows.iter().flat_map(|row| row_lines(row, &widths)));
        lines.push(rule);
        lines.join("\n")
    }
}

fn row_lines(row: &[String], widths: &[usize]) -> Vec<String> {
    let cells: Vec<Vec<&str>> = row.iter().map(|cell| cell.lines().collect()).collect();
    let height = cells.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let line = |index: usize| {
        let cells = widths.iter().enumerate().map(|(column, width)| {
            let text = cells.get(column).and_then(|lines| lines.get(index)).copied().unwrap_or_default();
            format!("| {} ", centred(text, *width))
        });
        cells.collect::<String>() + "|"
    };
    (0..height).map(line).collect()
}

/// Centres as `PrettyTable` does: an odd blank stands right of a text of odd length, left of one of even length.
fn centred(text: &str, width: usize) -> String {
    let text = printable(text);
    let length = text.chars().count();
    let excess = width.saturating_sub(length);
    let odd_left = excess % 2 == 1 && length.is_multiple_of(2);
    let left = excess / 2 + usize::from(odd_left);
    format!("{}{text}{}", " ".repeat(left), " ".repeat(excess - left))
}

/// A line without control characters: text from a record must not steer the terminal.
pub(crate) fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells<const N: usize>(cells: [&str; N]) -> [String; N] {
        cells.map(str::to_owned)
    }

    #[test]
    fn a_table_looks_as_prettytable_draws_it() {
        let mut table = Table::new(&["Name", "Addresses"]);
        table.row(cells(["a", "10.0.0.1\n10.0.0.20"]));
        table.row(cells(["abcdef", ""]));
        let drawn = "\
+--------+-----------+
|  Name  | Addresses |
+--------+-----------+
|   a    |  10.0.0.1 |
|        | 10.0.0.20 |
| abcdef |           |
+--------+-----------+";
        assert_eq!(table.render(), drawn);
    }

    #[test]
    fn an_empty_table_has_its_header() {
        assert_eq!(Table::new(&["Name"]).render(), "+------+\n| Name |\n+------+\n+------+");
    }

    #[test]
    fn a_cell_does_not_steer_the_terminal() {
        let mut table = Table::new(&["Name"]);
        table.row(cells(["\u{1b}[2J"]));
        assert!(!table.render().contains('\u{1b}'));
    }
}
