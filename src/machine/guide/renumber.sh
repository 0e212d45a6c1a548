#!/usr/bin/env bash
# Gives each member of the export to the user and the group that have its owners' names here. Running it again is safe:
# what an owner becomes depends on the id in the archive, never on the one on the disk.
export LC_ALL=C
owners=/etc/nixos/codchi-owners members=/root/codchi-members
for file in "$owners" "$members"; do [ -r "$file" ] || { echo "there is no $file" >&2; exit 2; }; done
for tool in getent getfattr setfattr setfacl; do
    command -v "$tool" >/dev/null || { echo "$tool is missing; try: nix-shell -p attr acl" >&2; exit 2; }
done
declare -A user group
status=0 given=0 last=
while read -r kind name id; do
    case $kind in user) table=passwd ;; group) table=group ;; *) continue ;; esac
    new=$(getent "$table" | awk -F: -v name="$name" '$1 == name { print $3; exit }')
    if [[ ! $id =~ ^[0-9]+$ || ! $new =~ ^[0-9]+$ ]]; then
        echo "no $kind $name here: what $id owns stays as it is" >&2
    elif [[ $kind == user ]]; then user[$id]=$new; else group[$id]=$new; fi
done <"$owners"

# A name as tar quotes it.
unquote() {
    local text=${1//\\\\/\\x5c}
    text=${text//\\\"/\"}
    printf -v path %b "${text//\\0/\\00}"
    path=/${path#./}
    path=${path%/}
}

# Fails where a link of this system is on the way, or another thing than the member is there.
look() {
    local way=${path%/*} at
    [[ $(readlink -e -- "${way:-/}"; echo .) == "${way:-/}"$'\n.' ]] || return 1
    at=$(stat -c '%f %u %g' -- "$path" 2>/dev/null) || return 1
    read -r mode uid gid <<<"$at"
    mode=$((16#$mode))
    case $1/$((mode >> 12)) in -/8 | C/8 | S/8 | d/4 | l/10 | c/2 | b/6 | p/1) ;; h/4) return 1 ;; h/*) ;; *) return 1 ;; esac
}

give() {
    local uid_to=${user[$2]-$2} gid_to=${group[$3]-$3} capability=
    # What the system has given to somebody else meanwhile is its own.
    [[ $uid == "$2" || $uid == "$uid_to" ]] && [[ $gid == "$3" || $gid == "$gid_to" ]] || return 1
    [[ $uid == "$uid_to" && $gid == "$gid_to" ]] && return 0
    # chown(2) takes away setuid, setgid and capabilities.
    [[ $((mode >> 12)) == 8 ]] &&
        capability=$(getfattr -h --absolute-names -e hex -n security.capability -- "$path" 2>/dev/null | grep -a ^security.capability=)
    chown -h -- "$uid_to:$gid_to" "$path" || return 1
    [[ $((mode >> 12)) == 10 ]] || chmod -- "$(printf %o $((mode & 07777)))" "$path" || return 1
    [[ -z $capability ]] || setfattr -h -n security.capability -v "${capability#*=}" -- "$path" || return 1
    given=$((given + 1))
}

# The ids in the archive's own text of an ACL.
acl() {
    local entry rest id to text= changed=
    local -a entries
    IFS=, read -ra entries <<<"$1"
    for entry in "${entries[@]}"; do
        rest=${entry#default:} id=
        if [[ $rest =~ ^(user|group):([0-9]+): ]]; then
            id=${BASH_REMATCH[2]} to=${BASH_REMATCH[2]}
            if [[ ${BASH_REMATCH[1]} == user ]]; then to=${user[$id]-$id}; else to=${group[$id]-$id}; fi
            [[ $to == "$id" ]] || { entry=${entry/":$id:"/":$to:"} changed=1; }
        fi
        text+=,$entry
    done
    [[ -z $changed ]] || setfacl -n --set "${text#,}" -- "$last"
}

member='^([-hdlcbpCS])[^ ]+ +([0-9]+)/([0-9]+) +[0-9,]+ [^"]*"(([^"\\]|\\.)*)"'
while IFS= read -r line; do
    if [[ $line =~ $member ]]; then
        kind=${BASH_REMATCH[1]} id=${BASH_REMATCH[2]} gid_was=${BASH_REMATCH[3]} quoted=${BASH_REMATCH[4]} last=
        moves=
        [[ ${user[$id]-$id} == "$id" && ${group[$gid_was]-$gid_was} == "$gid_was" ]] || moves=1
        [[ -n $moves || ${line%% *} == *+ ]] || continue
        unquote "$quoted"
        if look "$kind" && give "$kind" "$id" "$gid_was"; then
            [[ $kind == [hl] ]] || last=$path
        elif [[ -n $moves ]]; then
            printf 'left as it is: %q\n' "$path" >&2
            status=1
        fi
    elif [[ $line == '  a: '* && -n $last ]]; then
        acl "${line#  a: }" || status=1
    fi
done <"$members"
echo "$given members have other ids now than in the export"
exit $status
