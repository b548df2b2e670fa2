//! Quantities of resources, as `k8s.io/apimachinery/pkg/api/resource` writes them.

/// The powers of ten and of two by their suffixes.
const SUFFIXES: [(&str, f64); 16] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
    ("", 1.0),
];

/// Returns the number that a quantity such as `500m`, `1.5Gi` or `2e3` stands for, exact enough to compare; none where it
/// is no quantity.
pub(super) fn parse(text: &str) -> Option<f64> {
    let text = text.trim();
    let (number, factor) =
        SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))?;
    let plain = number.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-' | b'e' | b'E'));
    let number: f64 = number.parse().ok().filter(|_| plain)?;
    Some(number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantity_is_read_as_kubernetes_writes_it() {
        let cases = [
            ("0", 0.0),
            ("5", 5.0),
            ("500m", 0.5),
            ("1.5Gi", 1_610_612_736.0),
            ("100k", 100_000.0),
            ("2e3", 2000.0),
            ("1E", 1e18),
            ("-1", -1.0),
        ];
        for (text, number) in cases {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in ["", "m", "five", "inf", "NaN", "1 Gi", "1Xi"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
