//! Rota: much is looked at a few at a time, each in its turn.

/// Whose turn it was last.
#[derive(Debug, Clone)]
pub(crate) struct Rota<T> {
    last: Option<T>,
}

impl<T> Default for Rota<T> {
    fn default() -> Self {
        Rota { last: None }
    }
}

impl<T: Ord + Clone> Rota<T> {
    /// Those of a sorted list whose turn it is: so many that after as many `rounds` each has had one, but no more than `most`.
    /// The list need not be the same each time.
    pub(crate) fn next(&mut self, all: &[T], rounds: u64, most: usize) -> Vec<T> {
        let rounds = usize::try_from(rounds).unwrap_or(usize::MAX).max(1);
        let begin = self.last.as_ref().map_or(0, |last| all.partition_point(|one| one <= last));
        let turn: Vec<T> = all.iter().cycle().skip(begin).take(all.len().div_ceil(rounds).min(most)).cloned().collect();
        self.last = turn.last().cloned();
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_has_a_turn_within_so_many_rounds_whoever_comes_and_goes() {
        let mut rota = Rota::default();
        let mut all = vec![1, 3, 5, 7, 9];
        assert_eq!(rota.next(&all, 2, 100), [1, 3, 5]);
        assert_eq!(rota.next(&all, 2, 100), [7, 9, 1]);
        // Who was last is gone, and somebody has come behind it.
        all = vec![2, 3, 9];
        assert_eq!(rota.next(&all, 3, 100), [2]);
        assert_eq!(rota.next(&all, 1, 2), [3, 9]);
        assert!(rota.next(&[], 3, 2).is_empty());
        assert_eq!(rota.next(&all, 0, 100), all);
    }
}
