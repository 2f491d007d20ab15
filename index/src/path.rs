//! Lexical cleaning of the paths and link targets that a tar holds.

/// How many symlinks a path may lead through, as in containerd's `fs.RootPath`.
pub(crate) const MAX_LINKS: usize = 255;

/// How many components resolving one path may take, links included: without a bound of its own,
/// 255 links of 2,000 components each would make every entry of a hostile layer cost milliseconds.
pub(crate) const MAX_STEPS: usize = 16_384;

/// A path without `.`, `..` and empty components: begin at the root or `ups` directories above
/// where it is read, then descend through `names`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CleanPath<'a> {
    pub(crate) is_absolute: bool,
    pub(crate) ups: usize,
    pub(crate) names: Vec<&'a [u8]>,
}

/// Cleans a path; the `..` of an absolute one ends at the root.
pub(crate) fn clean(path: &[u8]) -> CleanPath<'_> {
    let mut ups = 0;
    let mut names = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => ups += usize::from(names.pop().is_none()),
            name => names.push(name),
        }
    }
    let is_absolute = path.first() == Some(&b'/');
    CleanPath { is_absolute, ups: if is_absolute { 0 } else { ups }, names }
}

/// Bytes of a path for an error message.
pub(crate) fn printable(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning() {
        let table: [(&str, bool, usize, &[&str]); 12] = [
            ("", false, 0, &[]),
            (".", false, 0, &[]),
            ("/", true, 0, &[]),
            ("a", false, 0, &["a"]),
            ("./a//b/", false, 0, &["a", "b"]),
            ("/../a", true, 0, &["a"]),
            ("a/../../b", false, 1, &["b"]),
            ("../../x/..", false, 2, &[]),
            ("/a/b/../../..", true, 0, &[]),
            ("a/./..", false, 0, &[]),
            ("...", false, 0, &["..."]),
            ("..a/.b", false, 0, &["..a", ".b"]),
        ];
        for (path, is_absolute, ups, names) in table {
            let names = names.iter().map(|name| name.as_bytes()).collect();
            assert_eq!(clean(path.as_bytes()), CleanPath { is_absolute, ups, names }, "{path}");
        }
    }
}
