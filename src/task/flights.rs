//! The tasks of one submitter that are in flight, by their sequence.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

/// A window over the sequences, which are handed out one after the other and mostly end much in that order: that is
/// quicker than a map. The few that are in flight for much longer than others move to one.
pub(super) struct Flights<F> {
    /// The sequence of the first place in the window.
    first: u64,
    window: VecDeque<Option<F>>,
    stragglers: FxHashMap<u64, F>,
    len: usize,
}

/// The window is at least so long before anything leaves it for the map, and may be mostly empty.
const SHORT: usize = 64;
const SPARSE: usize = 4;

impl<F> Flights<F> {
    pub(super) fn new() -> Flights<F> {
        Flights { first: 0, window: VecDeque::new(), stragglers: FxHashMap::default(), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The sequence must be higher than any before.
    #[inline]
    pub(super) fn insert(&mut self, sequence: u64, flight: F) {
        // One-way tasks leave gaps.
        if self.window.is_empty() {
            self.first = sequence;
        } else if sequence - self.first > (self.window.len() + SHORT) as u64 {
            self.empty_window();
            self.first = sequence;
        }
        while self.first + (self.window.len() as u64) < sequence {
            self.window.push_back(None);
        }
        self.window.push_back(Some(flight));
        self.len += 1;
        if self.window.len() > SHORT + SPARSE * self.len {
            self.slide();
        }
    }

    /// Moves what has been there longest to the map, so that the window is not mostly empty.
    #[cold]
    fn slide(&mut self) {
        while self.window.len() > SHORT / 2 + self.len {
            if let Some(Some(straggler)) = self.window.pop_front() {
                self.stragglers.insert(self.first, straggler);
            }
            self.first += 1;
        }
    }

    #[cold]
    fn empty_window(&mut self) {
        for flight in std::mem::take(&mut self.window) {
            if let Some(straggler) = flight {
                self.stragglers.insert(self.first, straggler);
            }
            self.first += 1;
        }
    }

    #[inline]
    pub(super) fn remove(&mut self, sequence: u64) -> Option<F> {
        let removed = match sequence.checked_sub(self.first) {
            Some(place) if place < self.window.len() as u64 => self.window[place as usize].take(),
            _ => self.stragglers.remove(&sequence),
        }?;
        self.len -= 1;
        while let Some(None) = self.window.front() {
            self.window.pop_front();
            self.first += 1;
        }
        Some(removed)
    }

    pub(super) fn get(&self, sequence: u64) -> Option<&F> {
        match sequence.checked_sub(self.first) {
            Some(place) if place < self.window.len() as u64 => self.window[place as usize].as_ref(),
            _ => self.stragglers.get(&sequence),
        }
    }

    pub(super) fn get_mut(&mut self, sequence: u64) -> Option<&mut F> {
        match sequence.checked_sub(self.first) {
            Some(place) if place < self.window.len() as u64 => self.window[place as usize].as_mut(),
            _ => self.stragglers.get_mut(&sequence),
        }
    }

    pub(super) fn sequences(&self) -> Vec<u64> {
        let window = (self.first..).zip(&self.window).filter(|(_, flight)| flight.is_some());
        window.map(|(sequence, _)| sequence).chain(self.stragglers.keys().copied()).collect()
    }

    /// Takes all out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = F> + use<F> {
        let Flights { window, stragglers, .. } = std::mem::replace(self, Flights::new());
        window.into_iter().flatten().chain(stragglers.into_values())
    }

    /// Gives back what a burst has left allocated.
    pub(super) fn release(&mut self) {
        if self.len == 0 {
            *self = Flights::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_map_would(steps in proptest::collection::vec((any::<bool>(), any::<u16>()), 0..2000)) {
            let (mut flights, mut map) = (Flights::new(), HashMap::new());
            let mut last = 0;
            for (inserts, number) in steps {
                if inserts {
                    last += 1 + u64::from(number % 3 == 0) + u64::from(number % 64 == 0) * 1000;
                    flights.insert(last, number);
                    map.insert(last, number);
                } else {
                    // Mostly among the last ones, sometimes any.
                    let back = u64::from(if number % 8 == 0 { number } else { number % 16 });
                    let sequence = last.saturating_sub(back);
                    prop_assert_eq!(flights.get(sequence), map.get(&sequence));
                    prop_assert_eq!(flights.remove(sequence), map.remove(&sequence));
                }
                prop_assert_eq!(flights.len(), map.len());
                prop_assert!(flights.window.len() <= SHORT + SPARSE * flights.len() + 2);
            }
            let mut left = flights.sequences();
            left.sort_unstable();
            let mut expected: Vec<u64> = map.into_keys().collect();
            expected.sort_unstable();
            prop_assert_eq!(left, expected);
        }
    }

    #[test]
    fn one_that_stays_for_ever_does_not_make_the_window_grow() {
        let mut flights = Flights::new();
        flights.insert(1, ());
        for sequence in 2..100_000 {
            flights.insert(sequence, ());
            assert_eq!(flights.remove(sequence), Some(()));
            assert!(flights.window.len() <= 2 * SHORT);
        }
        assert_eq!((flights.get(1), flights.len()), (Some(&()), 1));
    }
}
