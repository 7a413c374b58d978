//! Groups of one user: what such a group may do, only that user can do.

/// The user who alone belongs to the group of this process's machine with the id `gid`.
pub fn only_user_of_group(gid: u32) -> Option<u32> {
    let text = |path| std::fs::read_to_string(path).unwrap_or_default();
    only_user(&text("/etc/passwd"), &text("/etc/group"), gid)
}

/// The user with the name of the group `gid`, if it has no other member, and no other user has it as first group.
/// Users and groups outside of these two files are unknown, which counts as none.
fn only_user(passwd: &str, group: &str, gid: u32) -> Option<u32> {
    let fields = |line: &'_ str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let number = |field: Option<&String>| field.and_then(|field| field.parse::<u32>().ok());
    let users: Vec<_> = passwd.lines().map(fields).collect();
    let group = group.lines().map(fields).find(|group| number(group.get(2)) == Some(gid))?;
    let name = group.first()?;
    let user = users.iter().find(|user| user.first() == Some(name))?;
    let members = group.get(3).map(String::as_str).unwrap_or_default();
    let is_alone = members.split(',').all(|member| member.is_empty() || member == name)
        && users.iter().all(|other| number(other.get(3)) != Some(gid) || other.first() == Some(name));
    number(user.get(2)).filter(|_| is_alone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_group_of_one_user_is_private() {
        let passwd = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbob:x:1001:1000::/b:\n\
                      eve:x:1002:1002::/e:\nmax:x:1003:1003::/m:\n";
        let group = "root:x:0:\nann:x:1000:\nbob:x:1001:eve\neve:x:1002:eve\nstaff:x:1003:\n";
        let user = |gid| only_user(passwd, group, gid);
        assert_eq!((user(0), user(1002)), (Some(0), Some(1002)));
        assert_eq!(user(1000), None, "it is the first group of bob too");
        assert_eq!(user(1001), None, "eve is a member");
        assert_eq!(user(1003), None, "it has another name");
        assert_eq!(user(7), None, "it is unknown");
    }
}
