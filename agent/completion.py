"""`pilot-agent completion bash|zsh|fish`: scripts made from the same tables that the parser works by.

They name commands, flags and the values of flags that have few. Nothing of the agent runs while somebody types.
"""

from collections.abc import Iterable, Mapping, Sequence

from agent import terminal
from agent.cli import COMMANDS, HELP_COMMAND, PASSED_ON, PROGRAM
from agent.errors import UsageError
from agent.flags import Flag, Parsed
from agent.options import GLOBAL_FLAGS, NODE_TYPES, PROXY_LOG_LEVELS, REQUEST_PORTS

SHELLS = ("bash", "zsh", "fish")
_METHODS = ("GET", "POST")

# What may follow a command, and what may follow a flag.
_ARGUMENTS: Mapping[str, Sequence[str]] = {
    "proxy": NODE_TYPES[:3],
    "request": _METHODS,
    "completion": SHELLS,
    "help": (*COMMANDS, *PASSED_ON),
}
_VALUES: Mapping[str, Sequence[str]] = {
    "proxyLogLevel": PROXY_LOG_LEVELS,
    "output": ("json", "yaml"),
    "debug-port": tuple(map(str, REQUEST_PORTS)),
    "log_target": ("stdout", "stderr"),
    "controlPlaneAuthPolicy": ("NONE", "MUTUAL_TLS"),
}


def run(parsed: Parsed) -> int:
    """Raises UsageError for a shell that is not served."""
    if len(parsed.positionals) != 1 or parsed.positionals[0] not in SHELLS:
        given = " ".join(parsed.positionals)[:64]
        raise UsageError(f"completion: {given!r}: expected one of {', '.join(SHELLS)}")
    make = {"bash": bash, "zsh": zsh, "fish": fish}[parsed.positionals[0]]
    terminal.print_line(make(descriptions=not parsed.switch("no-descriptions")).rstrip("\n"))
    return 0


def commands() -> dict[str, str]:
    """Every command with its summary."""
    named = {name: command.summary for name, command in COMMANDS.items()}
    return {**named, **{name: summary for name, (_, summary) in PASSED_ON.items()}, HELP_COMMAND[0]: HELP_COMMAND[1]}


def _flags(command: str) -> Sequence[Flag]:
    return COMMANDS[command].flags if command in COMMANDS else ()


def _words(flags: Iterable[Flag]) -> str:
    return " ".join(f"--{flag.name}" for flag in flags)


def bash(*, descriptions: bool = True) -> str:
    """Bash shows no descriptions. `__pilot_agent` sees the words so far, the program first."""
    cases = "".join(
        f'        {name}) flags="{_words(_flags(name))}"; names="{" ".join(_ARGUMENTS.get(name, ()))}" ;;\n'
        for name in commands()
    )
    values = "".join(
        f'        --{flag}) COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$current")); return ;;\n'
        for flag, words in _VALUES.items()
    )
    return f"""# bash completion for {PROGRAM}: source <({PROGRAM} completion bash)
__pilot_agent() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" command="" word flags names
    COMPREPLY=()
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$word" in -*) ;; *) command="$word"; break ;; esac
    done
    case "$previous" in
{values}    esac
    case "$command" in
{cases}        *) flags="{_words(GLOBAL_FLAGS)}"; names="{" ".join(commands())}" ;;
    esac
    case "$current" in
        -*) COMPREPLY=($(compgen -W "$flags" -- "$current")) ;;
        *) COMPREPLY=($(compgen -W "$names" -- "$current")) ;;
    esac
}}
complete -o default -F __pilot_agent {PROGRAM}
"""


def zsh(*, descriptions: bool = True) -> str:
    def flag_lines(flags: Sequence[Flag]) -> str:
        lines = []
        for flag in flags:
            text = f"[{_zsh(flag.help)}]" if descriptions else ""
            value = "" if flag.is_switch else f":value:({' '.join(_VALUES[flag.name])})" if flag.name in _VALUES else ""
            value = value or ("" if flag.is_switch else ":value:_files")
            lines.append(f"'--{flag.name}{text}{value}'")
        return " ".join(lines)

    named = " ".join(
        f"'{name}:{_zsh(summary)}'" if descriptions else f"'{name}'" for name, summary in commands().items()
    )
    cases = "".join(
        f"        {name}) _arguments {flag_lines(_flags(name))} "
        f"'*:argument:({' '.join(_ARGUMENTS.get(name, ()))})' ;;\n"
        for name in commands()
    )
    return f"""#compdef {PROGRAM}
# zsh completion for {PROGRAM}: source <({PROGRAM} completion zsh)
__pilot_agent() {{
    local -a names=({named})
    local command="" index
    for (( index = 2; index < CURRENT; index++ )); do
        [[ "${{words[index]}}" != -* ]] && {{ command="${{words[index]}}"; break; }}
    done
    if (( index >= CURRENT )); then
        _describe command names
        _arguments {flag_lines(GLOBAL_FLAGS)}
        return
    fi
    case "$command" in
{cases}    esac
}}
compdef __pilot_agent {PROGRAM}
"""


def _zsh(text: str) -> str:
    return text.replace("'", "’").replace("[", "(").replace("]", ")").replace(":", "\\:")


def fish(*, descriptions: bool = True) -> str:
    def described(text: str) -> str:
        return " -d '" + text.replace("\\", "\\\\").replace("'", "\\'") + "'" if descriptions else ""

    lines = [f"# fish completion for {PROGRAM}: {PROGRAM} completion fish | source"]
    for name, summary in commands().items():
        lines.append(f"complete -c {PROGRAM} -n __fish_use_subcommand -f -a {name}{described(summary)}")
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        if name in _ARGUMENTS:
            lines.append(f"complete -c {PROGRAM} {seen} -f -a '{' '.join(_ARGUMENTS[name])}'")
        for flag in _flags(name):
            value = (
                "" if flag.is_switch else f" -x -a '{' '.join(_VALUES[flag.name])}'" if flag.name in _VALUES else " -r"
            )
            short = f" -s {flag.short}" if flag.short else ""
            lines.append(f"complete -c {PROGRAM} {seen} -l {flag.name}{short}{value}{described(flag.help)}")
    return "\n".join(lines) + "\n"
