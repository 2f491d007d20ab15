//! The user a container runs as, looked up in the image's own `/etc/passwd` and `/etc/group`.
//!
//! By containerd's rules (`pkg/oci`, `WithUser` and `WithAdditionalGIDs`): a number beats a name; a
//! uid without an entry has gid 0; supplementary groups are those that list the user, with the
//! primary group first, whether or not a group was named. (The OCI image spec would leave them out
//! where one was, and so does Docker.)

use super::error::BundleError;

/// Highest id that counts as a number; above it, digits are a name, as in containerd.
const ID_MAX: u32 = i32::MAX as u32;

/// `NGROUPS_MAX` of Linux.
const GROUPS_MAX: usize = 65_536;

/// Ids of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The primary group and the supplementary ones, each once.
    pub(super) groups: Vec<u32>,
}

struct PasswdEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
}

struct GroupEntry<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

fn id(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok().filter(|id| *id <= ID_MAX)
}

/// Lines as fields; malformed lines are passed over, as libc does.
fn passwd_entries(passwd: &[u8]) -> impl Iterator<Item = PasswdEntry<'_>> {
    passwd.split(|b| *b == b'\n').filter_map(|line| {
        let mut fields = line.trim_ascii().split(|b| *b == b':');
        let name = fields.next()?;
        let (uid, gid) = (id(fields.nth(1)?)?, id(fields.next()?)?);
        (!name.is_empty()).then_some(PasswdEntry { name, uid, gid })
    })
}

fn group_entries(group: &[u8]) -> impl Iterator<Item = GroupEntry<'_>> {
    group.split(|b| *b == b'\n').filter_map(|line| {
        let mut fields = line.trim_ascii().split(|b| *b == b':');
        let name = fields.next()?;
        let gid = id(fields.nth(1)?)?;
        let members = fields.next().unwrap_or_default();
        (!name.is_empty()).then_some(GroupEntry { name, gid, members })
    })
}

/// Resolves `user[:group]`; an empty text is root.
pub(super) fn resolve(
    user: &str,
    passwd: Option<&[u8]>,
    group: Option<&[u8]>,
) -> Result<Ids, BundleError> {
    let (user_part, group_part) = match user.split_once(':') {
        None => (user, ""),
        Some((_, rest)) if rest.contains(':') => {
            return Err(BundleError::User { found: user.to_owned() });
        }
        Some(parts) => parts,
    };
    let mut entries = passwd.into_iter().flat_map(passwd_entries);
    let (uid, primary, name) = match user_part {
        "" => entry_of(0, &mut entries),
        text => match id(text.as_bytes()) {
            Some(uid) => entry_of(uid, &mut entries),
            None => {
                let entry = entries.find(|e| e.name == text.as_bytes());
                let entry = entry.ok_or_else(|| BundleError::UnknownUser {
                    user: text.to_owned(),
                    reason: missing(passwd, "/etc/passwd"),
                })?;
                (entry.uid, entry.gid, Some(entry.name))
            }
        },
    };
    let gid = match group_part {
        "" => primary,
        text => match id(text.as_bytes()) {
            Some(gid) => gid,
            None => {
                let mut groups = group.into_iter().flat_map(group_entries);
                let entry = groups.find(|e| e.name == text.as_bytes());
                let unknown = || BundleError::UnknownGroup {
                    group: text.to_owned(),
                    reason: missing(group, "/etc/group"),
                };
                entry.ok_or_else(unknown)?.gid
            }
        },
    };
    // Without a passwd, root is still called root
    let name = name.or((uid == 0).then_some(b"root"));
    let groups = supplementary(name, uid, gid, group)?;
    Ok(Ids { uid, gid, groups })
}

fn entry_of<'a>(
    uid: u32,
    entries: &mut impl Iterator<Item = PasswdEntry<'a>>,
) -> (u32, u32, Option<&'a [u8]>) {
    match entries.find(|e| e.uid == uid) {
        Some(entry) => (uid, entry.gid, Some(entry.name)),
        None => (uid, 0, None),
    }
}

fn missing(file: Option<&[u8]>, path: &'static str) -> &'static str {
    match (file, path) {
        (Some(_), "/etc/passwd") => "not in the image's /etc/passwd",
        (Some(_), _) => "not in the image's /etc/group",
        (None, "/etc/passwd") => "the image has no /etc/passwd",
        (None, _) => "the image has no /etc/group",
    }
}

fn supplementary(
    name: Option<&[u8]>,
    uid: u32,
    gid: u32,
    group: Option<&[u8]>,
) -> Result<Vec<u32>, BundleError> {
    let mut groups = vec![gid];
    let (Some(name), Some(group)) = (name, group) else {
        return Ok(groups);
    };
    let mut seen = std::collections::HashSet::from([gid]);
    for entry in group_entries(group) {
        // The group of the user's own name is its private one, not a supplementary one
        let listed = entry.name != name && entry.members.split(|b| *b == b',').any(|m| m == name);
        if listed && seen.insert(entry.gid) {
            if groups.len() == GROUPS_MAX {
                return Err(BundleError::TooManyGroups { uid, expected: GROUPS_MAX });
            }
            groups.push(entry.gid);
        }
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\n\nbroken\nshort:x:7\n\
        app:x:1000:1001:App:/home/app:/bin/sh\r\nfar:x:4000000000:1:::\n42:x:77:78:::\n:x:9:9:::\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,app\napp:x:1001:app\nstaff:x:50:app\n\
        dup:x:50:app\nbroken:x\nbare:x:60\nlonger:x:61:apple,xapp\n";

    fn ids(user: &str) -> Result<(u32, u32, Vec<u32>), String> {
        resolve(user, Some(PASSWD.as_bytes()), Some(GROUP.as_bytes()))
            .map(|ids| (ids.uid, ids.gid, ids.groups))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn every_form_of_a_user() {
        type Row = (&'static str, (u32, u32, &'static [u32]));
        let table: &[Row] = &[
            ("", (0, 0, &[0, 10])),
            ("root", (0, 0, &[0, 10])),
            ("0", (0, 0, &[0, 10])),
            ("app", (1000, 1001, &[1001, 10, 50])),
            ("1000", (1000, 1001, &[1001, 10, 50])),
            ("01000", (1000, 1001, &[1001, 10, 50])),
            ("1000:5", (1000, 5, &[5, 10, 50])),
            ("app:staff", (1000, 50, &[50, 10])),
            ("1000:staff", (1000, 50, &[50, 10])),
            ("app:bare", (1000, 60, &[60, 10, 50])),
            ("app:", (1000, 1001, &[1001, 10, 50])),
            (":staff", (0, 50, &[50, 10])),
            ("12345", (12345, 0, &[0])),
            ("12345:6", (12345, 6, &[6])),
            // A number beats the user of that name
            ("42", (42, 0, &[0])),
        ];
        for (user, (uid, gid, groups)) in table {
            assert_eq!(ids(user), Ok((*uid, *gid, groups.to_vec())), "{user:?}");
        }
    }

    #[test]
    fn unknown_and_malformed_users_are_named() {
        let table = [
            ("nobody", "unknown user \"nobody\": not in the image's /etc/passwd"),
            ("-1", "unknown user \"-1\": not in the image's /etc/passwd"),
            ("4294967296", "unknown user \"4294967296\": not in the image's /etc/passwd"),
            ("far", "unknown user \"far\": not in the image's /etc/passwd"),
            ("short", "unknown user \"short\": not in the image's /etc/passwd"),
            ("app:none", "unknown group \"none\": not in the image's /etc/group"),
            ("a:b:c", "malformed user: expected user[:group], found: \"a:b:c\""),
        ];
        for (user, expected) in table {
            assert_eq!(ids(user), Err(expected.to_owned()), "{user:?}");
        }
    }

    #[test]
    fn an_image_without_the_files() {
        let bare = |user| resolve(user, None, None).map_err(|e| e.to_string());
        let root = Ids { uid: 0, gid: 0, groups: vec![0] };
        assert_eq!(bare(""), Ok(root.clone()));
        assert_eq!(bare("0:0"), Ok(root));
        assert_eq!(bare("5"), Ok(Ids { uid: 5, gid: 0, groups: vec![0] }));
        let unknown = "unknown user \"root\": the image has no /etc/passwd";
        assert_eq!(bare("root"), Err(unknown.to_owned()));
        let unknown = "unknown group \"g\": the image has no /etc/group";
        assert_eq!(bare("0:g"), Err(unknown.to_owned()));
        let group_only = resolve("", None, Some(GROUP.as_bytes())).map(|ids| ids.groups);
        assert_eq!(group_only.expect("root"), [0, 10]);
    }

    #[test]
    fn groups_are_bounded() {
        let group: String = (1..=70_000).map(|gid| format!("g{gid}:x:{gid}:root\n")).collect();
        let error = resolve("", None, Some(group.as_bytes())).expect_err("too many");
        assert_eq!(error.to_string(), "too many groups of uid 0: expected at most 65536");
    }
}
