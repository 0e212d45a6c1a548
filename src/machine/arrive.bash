# usage: codchi-arrive COMMAND [--yes] [--password-file FILE] [FILE]
#
#   check           say what is in the way, and change nothing
#   keep LIST       keep copies of what is here under the names in LIST
#                   (each ends in a NUL; - is standard input)
#   extract [TAR]   check, keep copies, extract TAR (- is standard input), verify;
#                   TAR is /root/codchi-export.tar unless it is named
#   verify [SUMS]   compare the files with SUMS, from `codchifs manifest --sums`
#                   (- is standard input), or with the TAR that is still here
#   prepare         set the password of codchi, and mend what would stop the rebuild
#   rebuild         build the system, make it the next to boot, make its users
#   owners          give the files of each service to the id that it has here
#   all             all of these that are not done yet
#   status          say what is done
#
# Runs as root on the NixOS that becomes the machine. Every command may be
# interrupted and run again. Exit status: 0 done, 1 failed, 2 wrong usage,
# 3 a question that nobody was there to answer (--yes answers those with y/N).
set -uo pipefail
export LC_ALL=C
umask 077

# Nothing of a machine is ever extracted to $state: codchifs leaves it out.
state=/var/lib/codchi-arrive
copy=/root/codchi-export.tar
installed=/etc/nixos/codchi-arrive
configuration=/etc/nixos/configuration.nix
owner_list=/etc/nixos/codchi-owners
member_list=/etc/codchi-members
system_profile=/nix/var/nix/profiles/system
self=$installed
[[ -e $self ]] || self=$0
yes='' password_file='' command='' operand=''

## What is printed

# Names of files are printed by %q, and what other programs print goes through this.
plain() { tr -sc '\11\12\40-\176' '?'; }

say() { printf '%s\n' "$*"; }
# The name is that of this system's user or a path of ours.
type_this() { printf '  bash %s %s\n' "$self" "$*"; }
fail() { printf 'codchi-arrive: %s\n' "$*" >&2; return 1; }

finding() { printf '%-5s %s\n' "$1" "${2//$'\n'/$'\n      '}"; }
fine() { finding ok "$1"; }
note() { finding note "$1"; }
# Nothing goes on before it is mended.
stop() { finding STOP "$1"; stops=$((stops + 1)); }
# Goes on if somebody says so.
doubt() { finding '?' "$1"; doubts+=$1$'\n'; }

# Exits where the answer is no, or nobody is there.
agree() {
    local answer
    [[ -z $yes ]] || return 0
    if [[ -t 0 ]]; then
        read -rp "$1 [y/N] " answer
        [[ $answer != [yY]* ]] || return 0
        say 'Nothing more was changed.'
        exit 1
    fi
    say "This needs an answer: $1"
    say 'Where you agree, type:'
    type_this "$command --yes${operand:+ ${operand@Q}}"
    exit 3
}

## State: a file for each step that is done

mark() {
    [[ ! -e $state/$1 || $(text_of "$1") != "${2-}" ]] || return 0
    printf '%s\n' "${2-}" >"$state/$1.part" && mv -T -- "$state/$1.part" "$state/$1"
}
is_done() { [[ -e $state/$1 ]]; }
text_of() { [[ -e $state/$1 ]] && printf '%s' "$(<"$state/$1")"; }

open_state() {
    local owner
    if [[ ! -d $state ]]; then
        mkdir -p -- "${state%/*}" && mkdir -m 700 -- "$state" || return 1
    fi
    owner=$(stat -c '%F %u %a' -- "$state") || return 1
    [[ $owner == "directory 0 700" && $(cd -P -- "$state" && pwd) == "$state" ]] ||
        fail "$state must be a directory of root with mode 700; move away what is there" || return 1
    exec 8>>"$state/lock" || return 1
    # One whose line was cut off may be about to end.
    flock -w 20 8 || fail 'another codchi-arrive is running: wait until it has ended'
}

## check

# This system's own configuration without comments, to look for names in. The flake has names that the machine chose.
configuration_text() {
    local file line
    for file in /etc/nixos/*.nix; do
        [[ -f $file && $file != */@(flake|codchi-arrive).nix ]] || continue
        while IFS= read -r line || [[ -n $line ]]; do
            printf '%s\n' "${line%%#*}"
        done <"$file"
    done
}

declares_user() { [[ $config =~ (^|[^A-Za-z0-9_-])\"?"$1"\"?[[:space:]]*[=.] ]]; }

has_key() {
    local file line
    for file in "$@"; do
        [[ -f $file && -r $file ]] || continue
        while read -r line || [[ -n $line ]]; do
            [[ -z $line || $line == '#'* ]] || return 0
        done <"$file"
    done
    return 1
}

# Whether root of this system, and not of the machine, has a key.
root_has_key() {
    has_key /etc/ssh/authorized_keys.d/root || is_done own-key && return
    declares_user root && [[ $config == *authorizedKeys* ]] && return
    is_done names || [[ -e $member_list ]] && return 1
    has_key /root/.ssh/authorized_keys
}

check_programs() {
    local program missing=
    for program in tar:gnutar getent:getent getfattr:attr setfattr:attr setfacl:acl flock:util-linux nix:nix; do
        command -v "${program%:*}" >/dev/null || [[ $missing == *" ${program#*:}"* ]] || missing+=" ${program#*:}"
    done
    if [[ $needs_git == yes || -e /etc/nixos/.git ]] && ! command -v git >/dev/null; then
        missing+=' git'
    fi
    [[ $(tar --version 2>/dev/null) == *'GNU tar'* || $missing == *gnutar* ]] || missing+=' gnutar'
    if [[ -n $missing ]]; then
        stop "missing here:$missing. For this run, type:
nix-shell -p$missing --run 'bash $self $command'"
    else
        fine 'the programs that are needed'
    fi
}

check_system() {
    if [[ ! -e /etc/NIXOS ]] || ! command -v nixos-rebuild >/dev/null; then
        stop 'this is no NixOS: install NixOS here first, then run this there'
    elif [[ -d /iso && ! -e $system_profile ]]; then
        stop 'this is the installer: install NixOS, start it, then run this there'
    elif [[ $(uname -m)-linux != "$system" ]]; then
        stop "the machine is for $system, and this is $(uname -m): take a target like the host"
    else
        fine "NixOS on $system"
    fi
    if [[ -f $configuration && -f /etc/nixos/hardware-configuration.nix ]]; then
        fine 'configuration.nix and hardware-configuration.nix'
    else
        stop 'the rebuild takes the boot loader, file systems and network from
configuration.nix and hardware-configuration.nix, and /etc/nixos lacks one.
nixos-generate-config writes both; look through them'
    fi
    if [[ -e /etc/nixos/flake.nix.before-codchi ]] || { [[ -e /etc/nixos/flake.nix ]] && ! has_arrived; }; then
        doubt "this system has a flake of its own, and the machine's takes its place.
It takes only configuration.nix and hardware-configuration.nix along.
The copy is /etc/nixos/flake.nix.before-codchi"
    fi
    if [[ -f $self ]] && (($(date +%s) < $(stat -c %Y -- "$self"))); then
        note "here it is $(date -u +'%F %T') UTC"
        doubt 'the clock is behind: downloads may fail, and times are wrong. Set it'
    fi
}

# Free MiB where something lies.
free() {
    local blocks size
    read -r blocks size < <(stat -f -c '%a %S' -- "$1") && printf '%s' $((blocks * size >> 20))
}

check_space() {
    local place device room=0 need seen=
    if [[ -f $copy ]] && ! is_done extracted; then
        need=$(($(stat -c %s -- "$copy") >> 20))
        for place in / /home /srv /var; do
            [[ -d $place ]] || continue
            device=$(stat -c %d -- "$place")
            [[ $seen == *" $device "* ]] || room=$((room + $(free "$place"))) seen+=" $device "
        done
        if ((room < need)); then
            stop "the files take $need MiB, and there are $room MiB. Make room, or extract
from a pipe, without the copy in /root: see docs/MIGRATION.md"
        fi
    fi
    for place in /nix:4096 /boot:64; do
        if [[ -d ${place%:*} ]] && (($(free "${place%:*}") < ${place#*:})); then
            doubt "less than ${place#*:} MiB are free in ${place%:*}: the rebuild may need more"
        fi
    done
    fine "free: / $(free /) MiB, /nix $(free /nix) MiB"
}

check_versions() {
    local line here='' set='' number
    while IFS= read -r line; do
        [[ $line =~ ^VERSION_ID=\"?([0-9]+\.[0-9]+)\"?$ ]] && here=${BASH_REMATCH[1]}
    done < <(cat /etc/os-release 2>/dev/null)
    if [[ -n $new_driver && $driver_has_nixpkgs == yes ]]; then
        doubt "the machine is locked to a Codchi from before 0.3.1.5, which makes containers
only. prepare takes $new_driver; the machine becomes NixOS 24.11"
    elif [[ -n $new_driver ]]; then
        doubt "the machine is locked to a Codchi from before 0.3.1.5, which makes containers
only. prepare takes $new_driver"
    elif [[ -n $release && -n $here && $here > $release ]]; then
        doubt "this is NixOS $here, and the machine is NixOS $release: what newer services
have written here, older ones may not read"
    else
        fine "NixOS ${here:-of an unknown release} here, ${release:-of an unknown release} in the machine"
    fi
    [[ $config == *system.stateVersion* ]] && set=configuration.nix
    if [[ -n $set ]]; then
        note "system.stateVersion becomes the machine's: what its modules declare,
else ${release:-what its nixpkgs says}. configuration.nix gives way, with a copy kept"
    fi
    for number in /var/lib/postgresql/*; do
        [[ ${number##*/} =~ ^[0-9]{1,3}$ && -d $number && ! -L $number ]] || continue
        note "PostgreSQL has data of version ${number##*/}. If the rebuild takes another one,
set services.postgresql.package = pkgs.postgresql_${number##*/}"
    done
}

# Codchi declares all users, so that the rebuild locks each password that is not declared, and drops each user.
check_users() {
    local name uid hash dropped='' locked=''
    local -A hashes
    while IFS=: read -r name hash _; do
        [[ -z $name ]] || hashes[$name]=$hash
    done < <(cat /etc/shadow 2>/dev/null)
    while IFS=: read -r name _ uid _; do
        [[ $name =~ ^[A-Za-z0-9_.-]+$ && $uid =~ ^[0-9]+$ ]] || continue
        hash=${hashes[$name]-}
        if [[ $name == codchi ]]; then
            [[ $uid == 1000 ]] || stop "codchi has the id $uid here and must have 1000:
remove the account (userdel codchi), and give its home to 1000:100"
            continue
        fi
        ((uid >= 1000 && uid < 30000)) || [[ $name == root ]] || continue
        if [[ $uid == 1000 ]]; then
            if declares_user "$name"; then
                stop "$name has the id 1000, which is codchi's. Take $name out of /etc/nixos,
or give it another id there (users.users.$name.uid = 1001) and its files with it"
            else
                doubt "$name has the id 1000, which becomes codchi's, with all files of $name"
            fi
        fi
        if [[ $name != root ]] && ! declares_user "$name"; then
            dropped+=" $name"
        elif [[ $hash == [!\!*]* && $config != *[pP]assword* ]]; then
            locked+=" $name"
        fi
    done </etc/passwd
    [[ -z $dropped ]] || doubt "the rebuild drops these users, who are not declared in /etc/nixos:
$dropped (their homes stay)"
    [[ -z $locked ]] || doubt "the rebuild locks the passwords of these users, who have none declared:
$locked. To keep one: users.users.NAME.hashedPassword"
    if root_has_key; then
        fine 'root has an ssh key'
    else
        doubt 'root has no ssh key of its own here: after the rebuild only codchi gets in'
    fi
}

check() {
    local config
    stops=0 doubts=
    config=$(configuration_text)
    say "What is here, for the machine $(printf %q "$machine"):"
    check_programs
    check_system
    check_space
    check_versions
    is_done rebuilt || check_users
    ((stops == 0)) || fail 'mend what STOP names, then type:' || { type_this "${command:-check}" >&2; return 1; }
}

# Somebody has agreed to all doubts. Answers are remembered.
agree_to_doubts() {
    [[ -z $doubts || $doubts == "$(text_of agreed)"$'\n' ]] && return 0
    agree 'Go on in spite of what is marked with "?"?'
    mark agreed "${doubts%$'\n'}"
}

## keep and extract

has_arrived() { is_done extracted || [[ -e $member_list ]]; }

# The first copy is the one that counts.
keep_one() {
    local to=$state/before$1
    [[ $1 != /etc/nixos/* ]] || to=$1.before-codchi
    [[ ! -e $to && ! -L $to ]] || return 0
    mkdir -p -- "${to%/*}" && rm -rf -- "$to.part" && cp -a -T -- "$1" "$to.part" && mv -T -- "$to.part" "$to"
}

# Names that were looked at before are not again: what is there now is the machine's.
keep_names() {
    local name path kept=0
    is_done names || [[ -e $member_list ]] || ! has_key /root/.ssh/authorized_keys || mark own-key || return 1
    sort -zu -o "$state/names.new" -- "$state/names.list" && touch -- "$state/names" || return 1
    while IFS= read -r -d '' name; do
        path=/${name#./}
        path=${path%/}
        [[ $path/ != */../* && $path != "$copy" ]] || continue
        if [[ -L $path || (-e $path && ! -d $path) ]]; then
            keep_one "$path" ||
                fail "no copy of $(printf %q "$path") can be kept; nothing was overwritten. Make room" || return 1
            kept=$((kept + 1))
        fi
    done < <(comm -z -13 -- "$state/names" "$state/names.new")
    sort -zmu -o "$state/names.part" -- "$state/names" "$state/names.new" &&
        mv -T -- "$state/names.part" "$state/names" && rm -f -- "$state/names.list" "$state/names.new" || return 1
    ((kept == 0)) || say "$kept files of this system are kept in $state/before and /etc/nixos/*.before-codchi"
}

keep() {
    cat -- "$1" >"$state/names.list" || return 1
    [[ -s $state/names.list ]] || fail 'the list is empty' || return 1
    keep_names
}

# Names as tar prints them have no control character in them, and each has one line.
names_of_tar() {
    local line
    tar -tf "$1" --quoting-style=escape | while IFS= read -r line; do
        [[ $line != *\\* ]] || printf -v line %b "$line"
        printf '%s\0' "$line"
    done
}

# What is not extracted, and not compared: our own files, and the keys by which this very session may have come.
left_alone() {
    without=(--anchored --no-wildcards "--exclude=.$copy" "--exclude=.$state")
    ! is_done own-key || without+=(--exclude=./root/.ssh/authorized_keys)
}

begin_anew() {
    local number=1
    agree 'The machine has arrived here before. Extract over what is here now?'
    while [[ -e $state/before.$number ]]; do number=$((number + 1)); done
    [[ ! -e $state/before ]] || mv -T -- "$state/before" "$state/before.$number" || return 1
    rm -f -- "$state"/{names,extracted,own-key,arrived}
}

extract() {
    local from=${1:-$copy} stamp=stream directories=--no-overwrite-dir
    local -a without
    if [[ $from != - ]]; then
        stamp=$(stat -c '%s %.9Y %i' -- "$from") || fail "copy the machine to $copy first" || return 1
        if [[ $(text_of extracted) == "$stamp" ]]; then
            say 'extract: done before'
            return 0
        fi
    fi
    ! is_done arrived || begin_anew || return 1
    check && agree_to_doubts || return 1
    if [[ $from == - ]]; then
        is_done names || agree 'No copies are kept of what is overwritten (keep does that). Extract?'
    else
        names_of_tar "$from" >"$state/names.list" ||
            fail "$(printf %q "$from") is no whole archive, and nothing was changed. Copy it again" || return 1
        keep_names || return 1
    fi
    # Directories that are here stay as they are, but not those of an extraction that was cut off: tar gives a directory its owner
    # and mode when it is done with what is in it.
    ! is_done extracting || directories=--overwrite-dir
    mark extracting || return 1
    rm -f -- "$state"/{extracted,sums,verified,prepared,rebuilt,owned}
    left_alone
    say 'Extracting'
    tar "$directories" --numeric-owner --xattrs --xattrs-include='*' --acls -S -xpf "$from" -C / "${without[@]}" 2>&1 | plain ||
        fail 'not all was extracted; it goes on when you type:' || { type_this extract >&2; return 1; }
    mark extracted "$stamp" && rm -f -- "$state/extracting" && mark boot "$(</proc/sys/kernel/random/boot_id)"
    self=$installed
    [[ $from == - ]] || verify ''
}

## verify

# What this script has changed by itself since.
is_ours() {
    case $1 in
        /etc/nixos/flake.nix | /etc/nixos/flake.lock) is_done prepared ;;
        /root/.ssh/authorized_keys) is_done own-key ;;
        "$copy") ;;
        *) return 1 ;;
    esac
}

compare_sums() {
    local line name path lines=0
    cd / || return 1
    while IFS= read -r line; do
        lines=$((lines + 1))
        [[ $line != *': OK' ]] || continue
        name=${line%: FAILED*}
        # As coreutils mark a name in which something had to be escaped.
        [[ $name != \\* ]] || printf -v name %b "${name#?}"
        path=/${name#./}
        path=/${path##/}
        is_ours "$path" || printf '%q: another content\n' "$path"
    done < <(sha256sum --check -- "$state/sums" 2>/dev/null)
    # What is no line of sums is passed over.
    ((lines == $(wc -l <"$state/sums"))) || say 'The list of sums is damaged'
}

# Owners are another matter once they were given to others, and so are directories that were here before.
compare_tar() {
    local line name why path
    local -a without ended
    left_alone
    tar --numeric-owner --quoting-style=escape -df "$copy" -C / "${without[@]}" 2>&1 | while IFS= read -r line; do
        name=${line%: *} why=${line##*: }
        name=${name#tar: }
        [[ $name != *\\* ]] || printf -v name %b "$name"
        path=/${name#./}
        path=${path%/}
        case $why in
            'Uid differs' | 'Gid differs') ! is_done owned || continue ;;&
            'Uid differs' | 'Gid differs' | 'Mode differs' | 'Mod time differs')
                [[ ! -d $path || -L $path ]] || continue ;;
        esac
        is_ours "$path" || printf '%q: %s\n' "$path" "$(plain <<<"$why")"
    done
    ended=("${PIPESTATUS[@]}")
    ((ended[0] < 2)) || say "$copy cannot be read to its end"
}

verify() {
    local by differ
    if [[ -n ${1-} ]]; then
        cat -- "$1" >"$state/sums.part" && [[ -s $state/sums.part ]] ||
            fail 'no sums came: look at what codchifs said' || return 1
        mv -T -- "$state/sums.part" "$state/sums" || return 1
    fi
    if [[ -e $state/sums ]]; then
        by=sums
    elif [[ -f $copy ]]; then
        by=tar
    else
        agree "$copy is not here to compare the files with. Go on?"
        return 0
    fi
    say "Comparing the files with ${by/tar/$copy}"
    differ=$("compare_$by" | head -n 20)
    if [[ -n $differ ]]; then
        say "$differ" >&2
        is_done boot && [[ $(text_of boot) != "$(</proc/sys/kernel/random/boot_id)" ]] &&
            say 'This system was started since they were extracted: services may have written them.' >&2
        rm -f -- "$state/verified"
        fail 'these are not as in the machine (at most 20 are shown). Copy and extract again' || return 1
    fi
    mark verified
    say 'verify: every file is as in the machine'
}

## prepare

hash_of() {
    if command -v mkpasswd >/dev/null; then mkpasswd -s; else openssl passwd -6 -stdin; fi
}

set_password() {
    local name hash='' first second
    if [[ -n $password_file ]]; then
        IFS= read -r first <"$password_file" || [[ -n ${first-} ]] ||
            fail "there is no password in $(printf %q "$password_file")" || return 1
        hash=$(hash_of <<<"$first")
    elif [[ -s $state/password ]]; then
        return 0
    else
        while IFS=: read -r name first _; do
            [[ $name != codchi || $first != '$'* ]] || hash=$first
        done < <(cat /etc/shadow 2>/dev/null)
        if is_done rebuilt || [[ -z $hash ]]; then
            if [[ ! -t 0 ]]; then
                say 'codchi needs a password, or the rebuild sets it to "codchi". Type:'
                type_this "$command --password-file FILE${yes:+ --yes}"
                exit 3
            fi
            read -rsp 'New password for codchi: ' first && say && read -rsp 'Once more: ' second && say || return 1
            [[ -n $first && $first == "$second" ]] || fail 'these are not the same; run it again' || return 1
            hash=$(hash_of <<<"$first")
        fi
    fi
    [[ $hash == '$'* ]] || fail 'the password cannot be hashed: mkpasswd and openssl are missing' || return 1
    mark password "$hash"
}

# Runs a function on each line of a file, in $line, and replaces the file if one has changed.
edit() {
    local file line before text='' old=''
    file=$(readlink -e -- "$2") || return 1
    while IFS= read -r line || [[ -n $line ]]; do
        before=$line
        "$1"
        old+=$before$'\n' text+=$line$'\n'
    done <"$file"
    [[ $text != "$old" ]] || return 0
    [[ $2 == /etc/nixos/flake.nix ]] || keep_one "$file" || return 1
    cp -a -T -- "$file" "$file.part" && printf %s "$text" >"$file.part" && mv -T -- "$file.part" "$file"
}

# Two definitions that differ are an error. What a module says counts; below it, and above the option's own default, is priority
# 1400. `lib` need not be an argument of the file.
state_version_gives_way() {
    [[ $line =~ ^([^#]*)system\.stateVersion[[:space:]]*=([^\;]*)\;(.*)$ ]] || return 0
    [[ ${BASH_REMATCH[1]} != *'/*'* && ${BASH_REMATCH[2]} != *_type* ]] || return 0
    local value="/* system.stateVersion =${BASH_REMATCH[2]}; */"
    [[ -z $release ]] ||
        value="system.stateVersion = { _type = \"override\"; priority = 1400; content = \"$release\"; };"
    line=${BASH_REMATCH[1]}$value${BASH_REMATCH[3]}
}

fit_flake() {
    if [[ -n $new_driver && $line =~ ^([[:space:]]*codchi_driver\.url[[:space:]]*=) ]]; then
        line="${BASH_REMATCH[1]} \"$new_driver\";"
    elif [[ $line == *'builtins.pathExists [ ./configuration.nix'* ]]; then
        line=${line/'[ ./conf'/'[ ./codchi-arrive.nix ./conf'}
    fi
}

trust() {
    local known
    while IFS= read -r -d '' known; do
        [[ $known != "$1" ]] || return 0
    done < <(git config --global -z --get-all safe.directory)
    git config --global --add safe.directory "$1"
}

prepare() {
    local module text
    set_password || return 1
    # From here on the generated files of /etc/nixos are not as they came.
    mark prepared || return 1
    text="# By codchi-arrive: without it the password of codchi is \"codchi\".
{ users.users.codchi.hashedPasswordFile = \"$state/password\"; }"
    if [[ ! -f /etc/nixos/codchi-arrive.nix || $(</etc/nixos/codchi-arrive.nix) != "$text" ]]; then
        [[ ! -e /etc/nixos/codchi-arrive.nix ]] || keep_one /etc/nixos/codchi-arrive.nix || return 1
        printf '%s\n' "$text" >"$state/nix.part" && chmod 644 -- "$state/nix.part" &&
            mv -T -- "$state/nix.part" /etc/nixos/codchi-arrive.nix || return 1
    fi
    edit state_version_gives_way "$configuration" && edit fit_flake /etc/nixos/flake.nix || return 1
    for module in "${modules[@]}"; do
        trust "/home/codchi/$module" || return 1
    done
    # Nix sees of a repository what git knows.
    if [[ -e /etc/nixos/.git ]]; then
        git -C /etc/nixos rev-parse --git-dir >/dev/null 2>&1 || trust /etc/nixos || return 1
        for module in flake.nix flake.lock configuration.nix hardware-configuration.nix codchi-arrive.nix; do
            [[ -e /etc/nixos/$module ]] || continue
            [[ -n $(git -C /etc/nixos ls-files -- "$module") ]] || git -C /etc/nixos add -N -f -- "$module" || return 1
        done
    fi
    say 'prepare: done'
}

## rebuild

# What the system makes is for everybody, unlike what this script does.
run() { (umask 022 && "$@") 2>&1 | tee -a -- "$state/rebuild.log" | plain; }

# Another major version would start with an empty cluster.
check_postgresql() {
    local unit line number wanted=
    unit=$state/result/etc/systemd/system/postgresql.service
    [[ -f $unit ]] || return 0
    while IFS= read -r line; do
        [[ $line =~ -postgresql-(and-plugins-)?([0-9]+) ]] && wanted=${BASH_REMATCH[2]}
    done <"$unit"
    [[ -n $wanted && ! -d /var/lib/postgresql/$wanted ]] || return 0
    for number in /var/lib/postgresql/*; do
        number=${number##*/}
        [[ $number =~ ^[0-9]{1,3}$ ]] || continue
        fail "the system has PostgreSQL $wanted, and the data is of $number. Write into
$configuration: services.postgresql.package = pkgs.postgresql_$number;" || return 1
    done
}

is_rebuilt() {
    local file
    [[ -n $(text_of rebuilt) && $(text_of rebuilt) == "$(readlink -e -- "$system_profile")" ]] || return 1
    for file in /etc/nixos/*.nix; do
        [[ ! $file -nt $state/rebuilt ]] || return 1
    done
}

rebuild() {
    local made
    if is_rebuilt; then
        say 'rebuild: done before'
        return 0
    fi
    cd -- "$state" && rm -f rebuilt && : >rebuild.log || return 1
    say "Building the system; $state/rebuild.log has all of the output"
    run nixos-rebuild build --flake /etc/nixos#nixos ||
        fail 'the build failed, and this system is as it was. Mend what nix names in
/etc/nixos, then type:' || { type_this "$command" >&2; return 1; }
    check_postgresql || return 1
    run nixos-rebuild boot --flake /etc/nixos#nixos ||
        fail 'the boot loader was not installed. To go back, type:
  nixos-rebuild boot --rollback' || return 1
    made=$(readlink -e -- "$system_profile") || return 1
    # Makes the users, and starts no service before its files are its own.
    NIXOS_ACTION=boot run "$made/activate" ||
        fail 'the new system cannot be activated. To go back, type:
  nixos-rebuild switch --rollback' || return 1
    getent passwd codchi >/dev/null ||
        fail 'the new system made no user codchi yet. Type reboot, then codchi-arrive owners' || return 1
    mark rebuilt "$made"
    say 'rebuild: done'
}

## owners: what an owner becomes depends on the id in the list, never on the one on the disk

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

# chown(2) takes away setuid, setgid and capabilities: they are written down first, for when this ends in between.
give() {
    local uid_to=${user[$uid_was]-$uid_was} gid_to=${group[$gid_was]-$gid_was} capability=''
    # What the system has given to somebody else meanwhile is its own.
    [[ $uid == "$uid_was" || $uid == "$uid_to" ]] && [[ $gid == "$gid_was" || $gid == "$gid_to" ]] || return 1
    [[ $uid == "$uid_to" && $gid == "$gid_to" && $path != "$lost_path" ]] && return 0
    if [[ $path == "$lost_path" ]]; then
        mode=$lost_mode capability=$lost_capability lost_path=''
    elif [[ $kind == f ]]; then
        capability=$(getfattr -h -e hex -n security.capability -- "$name" 2>/dev/null)
        if [[ $capability =~ security\.capability=(0x[0-9a-f]+)$ ]]; then capability=${BASH_REMATCH[1]}; else capability=''; fi
    fi
    if [[ $kind == [fd] && ($((mode & 06000)) != 0 || -n $capability) ]]; then
        printf '%s\0' "$path" "$mode" "$capability" >"$state/giving.part" &&
            mv -T -- "$state/giving.part" "$state/giving" || return 1
    fi
    chown -h -- "$uid_to:$gid_to" "$name" || return 1
    [[ $((mode & 06000)) == 0 || $kind != [fd] ]] || on_it chmod -- "$(printf %o $((mode & 07777)))" || return 1
    [[ -z $capability ]] || setfattr -h -n security.capability -v "$capability" -- "$name" || return 1
    given=$((given + 1))
}

# Sets an ACL of the list, with the ids that its users and groups have here. $1 is -d for a default ACL.
acl() {
    local entry id to text='' changed=''
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
    on_it setfacl ${1:+"$1"} -n --set "${text#,}" -- && return 0
    printf 'its ACL is left as it is: %q\n' "$path" >&2
    return 1
}

# Ids here by name, as getent has them.
ids_of() {
    local -n ids=$2
    local name id
    while IFS=: read -r name _ id _; do
        [[ -z $name || -n ${ids[$name]-} || ! $id =~ ^[0-9]+$ ]] || ids["$name"]=$id
    done < <(getent "$1")
}

owners() {
    local kind name id new path access default moves status=0 given=0 here=''
    local lost_path='' lost_mode='' lost_capability='' mode uid gid inode uid_was gid_was
    local -A user=() group=() users=() groups=()
    [[ -r $owner_list && -r $member_list ]] || fail "there is no $member_list: extract first" || return 1
    for name in getent:getent getfattr:attr setfattr:attr setfacl:acl; do
        command -v "${name%:*}" >/dev/null ||
            fail "${name%:*} is missing. Type: nix-shell -p ${name#*:} --run 'bash $self owners'" || return 1
    done
    ids_of passwd users
    ids_of group groups
    while read -r kind name id; do
        case $kind in user) new=${users[$name]-} ;; group) new=${groups[$name]-} ;; *) continue ;; esac
        if [[ ! $id =~ ^[0-9]+$ || -z $new ]]; then
            printf 'no %s %q here: what %q owns stays as it is\n' "$kind" "$name" "$id" >&2
        elif [[ $kind == user ]]; then user[$id]=$new; else group[$id]=$new; fi
    done <"$owner_list"
    [[ ! -e $state/giving ]] ||
        { IFS= read -r -d '' lost_path && read -r -d '' lost_mode && IFS= read -r -d '' lost_capability; } <"$state/giving"
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
    done <"$member_list"
    rm -f -- "$state/giving"
    mark owned
    say "owners: $given members have other ids now than in the export"
    ((status == 0)) || fail 'what is named above belongs to whom it did; look at each, and use chown'
}

## all of it

all() {
    if [[ -f $copy ]] && ! is_done arrived && [[ $(text_of extracted) != "$(stat -c '%s %.9Y %i' -- "$copy")" ]]; then
        extract '' || return 1
    elif ! has_arrived; then
        fail "nothing has arrived: copy the machine to $copy first" || return 1
    else
        check && agree_to_doubts || return 1
    fi
    is_done verified || verify '' || return 1
    prepare && rebuild && owners || return 1
    mark arrived
    say
    say 'The machine has arrived. To start it with its own files, type:'
    say '  reboot'
    say "When all is well, remove the copy: rm $copy"
}

status() {
    local step
    say "The machine $(printf %q "$machine"):"
    for step in extracted verified prepared rebuilt owned arrived; do
        if is_done "$step"; then
            printf '%-10s %s\n' "$step" "$(date -d "@$(stat -c %Y -- "$state/$step")" +'%F %T')"
        else
            printf '%-10s not yet\n' "$step"
        fi
    done
}

usage() {
    fail "$1
usage: codchi-arrive check|keep|extract|verify|prepare|rebuild|owners|all|status
       [--yes] [--password-file FILE] [FILE]"
    exit 2
}

while (($#)); do
    case $1 in
        --yes) yes=1 ;;
        --password-file)
            (($# > 1)) || usage '--password-file needs a FILE'
            password_file=$2
            shift
            ;;
        -) operand=- ;;
        -*) usage "there is no option $(printf %q "$1")" ;;
        *)
            if [[ -z $command ]]; then command=$1; elif [[ -z $operand ]]; then operand=$1; else usage 'too many words'; fi
            ;;
    esac
    shift
done
case $command in
    check | prepare | rebuild | owners | all | status) [[ -z $operand ]] || usage "$command takes no FILE" ;;
    keep) [[ -n $operand ]] || usage 'keep needs a LIST' ;;
    extract | verify) ;;
    *) usage "$(printf 'there is no command %q' "$command")" ;;
esac
((EUID == 0)) || fail 'run this as root' || exit 1
[[ -z $password_file || -r $password_file ]] || fail "$(printf %q "$password_file") cannot be read" || exit 1
if [[ $command == check || $command == status ]]; then
    [[ ! -e $state || (-d $state && ! -L $state && -O $state) ]] || fail "$state is not root's" || exit 1
else
    open_state || exit 1
fi
"$command" ${operand:+"$operand"} || exit 1
