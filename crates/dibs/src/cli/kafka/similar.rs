//! Did you mean …?

/// The name that was probably meant: the same but for `-`, `_`, `.` and case, or a slip of the keyboard away.
pub(super) fn to<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain_typed = plain(typed);
    // One slip in a short name, two or three in a long one.
    let allowed = (typed.chars().count() / 4).clamp(1, 3);
    names
        .filter(|name| *name != typed)
        .map(|name| (if plain(name) == plain_typed { 0 } else { slips(typed, name) }, name))
        .filter(|(slips, _)| *slips <= allowed)
        .min()
        .map(|(_, name)| name)
}

/// Whether two names differ in nothing but `-`, `_`, `.` and case.
pub(super) fn same(a: &str, b: &str) -> bool {
    plain(a) == plain(b)
}

fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '-' | '_' | '.')).flat_map(char::to_lowercase).collect()
}

/// Letters to insert, delete, replace or swap with their neighbour (optimal string alignment).
fn slips(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: [Vec<usize>; 3] = [vec![0; b.len() + 1], (0..=b.len()).collect(), vec![0; b.len() + 1]];
    for i in 1..=a.len() {
        rows[2][0] = i;
        for j in 1..=b.len() {
            let change = rows[1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = change.min(rows[1][j] + 1).min(rows[2][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[0][j - 2] + 1);
            }
            rows[2][j] = least;
        }
        rows.rotate_left(1);
    }
    rows[1][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_counted() {
        for (a, b, count) in [
            ("", "", 0),
            ("a", "", 1),
            ("", "ab", 2),
            ("abc", "acb", 1),
            ("kitten", "sitting", 3),
            ("ab", "ba", 1),
        ] {
            assert_eq!(slips(a, b), count, "{a} {b}");
        }
    }

    #[test]
    fn what_was_meant_is_found_and_nothing_else() {
        let names = ["coupon_create", "coupon_delete", "orders", "payments.v1"];
        let to = |typed| to(typed, names.into_iter());
        assert_eq!(to("coupon-create"), Some("coupon_create"));
        assert_eq!(to("CouponCreate"), Some("coupon_create"));
        assert_eq!(to("ordres"), Some("orders"));
        assert_eq!(to("payments-v1"), Some("payments.v1"));
        assert_eq!(to("shipments"), None);
        assert_eq!(to("o"), None);
    }
}
