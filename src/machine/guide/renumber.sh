#!/usr/bin/env bash
# Gives each member of the export to the user and the group that have its owners' names here. Running it again is safe:
# what an owner becomes depends on the id in the list, never on the one on the disk.
export LC_ALL=C
owners=/etc/nixos/codchi-owners members=/etc/codchi-members
for file in "$owners" "$members"; do [ -r "$file" ] || { echo "there is no $file" >&2; exit 2; }; done
for tool in getent getfattr setfattr setfacl; do
    command -v "$tool" >/dev/null || { echo "$tool is missing; try: nix-shell -p attr acl" >&2; exit 2; }
done
declare -A user group
status=0 given=0
while read -r kind name id; do
    case $kind in user) table=passwd ;; group) table=group ;; *) continue ;; esac
    new=$(getent "$table" | awk -F: -v name="$name" '$1 == name { print $3; exit }')
    if [[ ! $id =~ ^[0-9]+$ || ! $new =~ ^[0-9]+$ ]]; then
        echo "no $kind $name here: what $id owns stays as it is" >&2
    elif [[ $kind == user ]]; then user[$id]=$new; else group[$id]=$new; fi
done <"$owners"

# Enters the directory of a member, and stays in it whatever its path leads to later. Fails where a link of this system is
# on the way, or another thing than the member is there.
enter() {
    local way=${path%/*} at
    name=./${path##*/}
    if [[ $way != "$here" ]]; then
        here=
        cd -P -- "${way:-/}" 2>/dev/null && [[ $PWD == "${way:-/}" ]] || return 1
        here=$way
    fi
    at=$(stat -c '%f %u %g %d:%i' -- "$name" 2>/dev/null) || return 1
    read -r mode uid gid inode <<<"$at"
    mode=$((16#$mode))
    case $kind/$((mode >> 12)) in f/8 | d/4 | l/10 | c/2 | b/6 | p/1) ;; *) return 1 ;; esac
}

# Runs a command on the very file or directory that `enter` saw, for commands that would follow a link in its place. Other
# kinds are not opened: a FIFO would wait for a writer.
on_it() {
    local status
    [[ $kind == [fd] ]] || return 1
    exec 9<"$name" || return 1
    [[ $(stat -L -c %d:%i /proc/self/fd/9) == "$inode" ]] && "$@" /proc/self/fd/9
    status=$?
    exec 9<&-
    return $status
}

give() {
    local uid_to=${user[$uid_was]-$uid_was} gid_to=${group[$gid_was]-$gid_was} capability=
    # What the system has given to somebody else meanwhile is its own.
    [[ $uid == "$uid_was" || $uid == "$uid_to" ]] && [[ $gid == "$gid_was" || $gid == "$gid_to" ]] || return 1
    [[ $uid == "$uid_to" && $gid == "$gid_to" ]] && return 0
    # chown(2) takes away setuid, setgid and capabilities.
    [[ $kind == f ]] &&
        capability=$(getfattr -h -e hex -n security.capability -- "$name" 2>/dev/null | grep -a ^security.capability=)
    chown -h -- "$uid_to:$gid_to" "$name" || return 1
    [[ $((mode & 06000)) == 0 || $kind != [fd] ]] || on_it chmod -- "$(printf %o $((mode & 07777)))" || return 1
    [[ -z $capability ]] || setfattr -h -n security.capability -v "${capability#*=}" -- "$name" || return 1
    given=$((given + 1))
}

# Sets an ACL of the list, with the ids that its users and groups have here. $1 is -d for a default ACL.
acl() {
    local entry id to text= changed=
    local -a entries
    IFS=, read -ra entries <<<"$2"
    for entry in "${entries[@]}"; do
        if [[ $entry =~ ^(user|group):([0-9]+): ]]; then
            id=${BASH_REMATCH[2]}
            if [[ ${BASH_REMATCH[1]} == user ]]; then to=${user[$id]-$id}; else to=${group[$id]-$id}; fi
            [[ $to == "$id" ]] || { entry=${entry/":$id:"/":$to:"} changed=1; }
        fi
        text+=,$entry
    done
    [[ -z $changed ]] && return 0
    on_it setfacl $1 -n --set "${text#,}" -- && return 0
    printf 'its ACL is left as it is: %q\n' "$path" >&2
    return 1
}

here=
while read -r -d '' kind uid_was gid_was && IFS= read -r -d '' path &&
    IFS= read -r -d '' access && IFS= read -r -d '' default; do
    moves=
    [[ ${user[$uid_was]-$uid_was} == "$uid_was" && ${group[$gid_was]-$gid_was} == "$gid_was" ]] || moves=1
    [[ -n $moves || -n $access$default ]] || continue
    if enter && give; then
        [[ -z $access ]] || acl '' "$access" || status=1
        [[ -z $default ]] || acl -d "$default" || status=1
    elif [[ -n $moves ]]; then
        printf 'left as it is: %q\n' "$path" >&2
        status=1
    fi
done <"$members"
echo "$given members have other ids now than in the export"
exit $status
