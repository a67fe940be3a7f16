//! Who presses when: the whole sequence, made before the first claim is sent.

/// One press of one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Press {
    /// Number of the user, from 0.
    pub(crate) user: u32,
    /// Which press of this user it is, from 0.
    pub(crate) nth: u16,
    /// Sent before the opening: it is expected to be too early, and the user presses again afterwards.
    pub(crate) early: bool,
}

/// All presses in order, the early ones first; and how many are early.
///
/// Users come in an order shuffled by `seed`. Of the further presses of a user half follow right behind the
/// first (an impatient double click, in flight on another connection at the same time), half anywhere later.
pub(crate) fn presses(users: u32, press: u16, early: f64, seed: u64) -> (Vec<Press>, usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut order: Vec<u32> = (0..users).collect();

    rng.shuffle(&mut order);
    let eager = (f64::from(users) * early).round() as usize;
    let mut all = Vec::with_capacity(eager + users as usize * usize::from(press));
    all.extend(order[..eager].iter().map(|&user| Press { user, nth: 0, early: true }));

    // Shuffled anew: to be early says nothing about the place in the rush.
    rng.shuffle(&mut order);
    let mut placed: Vec<(u32, u32, u16)> = Vec::with_capacity(users as usize * usize::from(press));
    for (at, &user) in (0u32..).zip(&order) {
        placed.push((at, user, 0));
        for nth in 1..press {
            let later = if rng.bool() { at } else { rng.u32(at..users) };
            placed.push((later, user, nth));
        }
    }
    placed.sort_unstable();
    all.extend(placed.into_iter().map(|(_, user, nth)| Press { user, nth, early: false }));
    (all, eager)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_presses_as_often_as_said() {
        let (all, early) = presses(100, 3, 0.1, 7);
        assert_eq!((all.len(), early), (310, 10));
        assert!(all[..10].iter().all(|p| p.early) && all[10..].iter().all(|p| !p.early));
        let mut seen: Vec<(u32, u16)> = all[10..].iter().map(|p| (p.user, p.nth)).collect();
        seen.sort_unstable();
        let expected: Vec<(u32, u16)> = (0..100).flat_map(|u| (0..3).map(move |n| (u, n))).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_seed_decides_the_order() {
        assert_eq!(presses(100, 2, 0.2, 7), presses(100, 2, 0.2, 7));
        assert_ne!(presses(100, 2, 0.2, 7), presses(100, 2, 0.2, 8));
    }

    #[test]
    fn some_duplicates_are_double_clicks_and_some_come_late() {
        let (all, _) = presses(1_000, 2, 0.0, 7);
        let at = |user, nth| all.iter().position(|p| (p.user, p.nth) == (user, nth)).unwrap();
        let near = (0..1_000).filter(|&u| at(u, 0).abs_diff(at(u, 1)) <= 4).count();
        assert!((300..700).contains(&near), "{near}");
    }
}
