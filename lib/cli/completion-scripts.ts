// The three shells' completion scripts as text. Each offers commands, a command's options, an
// option's choices, file names where an option takes one, and schemes of URIs; after `file:` file
// names.

import type { CommandWords, OptionWords } from './completion.js';

export function bashScript(commands: readonly CommandWords[], schemes: readonly string[]): string {
  const names = commands.map((command) => command.name).join(' ');
  const values = new Map<string, string>();
  const cases: string[] = [];
  for (const command of commands) {
    for (const option of command.options) {
      if (option.takesValue) values.set(option.flag, bashValue(option));
    }
    const words = command.options.map((option) => option.flag).join(' ');
    cases.push(
      `    ${command.name})\n` +
        `      if [[ $cur == -* ]]; then COMPREPLY=($(compgen -W "${words}" -- "$cur"))\n` +
        `      else ${bashArguments(command)}; fi ;;`,
    );
  }
  const valueCases = [...values].map(([flag, reply]) => `    ${flag}) ${reply}; return ;;`);
  return `# bash completion for penstock
_penstock_uri() {
  local uri="$1"
  # Bash breaks words at a colon: what follows "file:" arrives as a word of its own.
  if [[ $COMP_CWORD -ge 1 && ( $uri == ":" || \${COMP_WORDS[COMP_CWORD-1]} == ":" ) ]]; then
    [[ $uri == ":" ]] && uri=""
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen -f -- "$uri"))
    return
  fi
  compopt -o nospace 2>/dev/null
  COMPREPLY=($(compgen -W "${schemes.map((scheme) => `${scheme}:`).join(' ')}" -- "$uri"))
}
_penstock() {
  local cur="\${COMP_WORDS[COMP_CWORD]}" prev="" command="" i
  [[ $COMP_CWORD -ge 1 ]] && prev="\${COMP_WORDS[COMP_CWORD-1]}"
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    case " ${names} " in *" \${COMP_WORDS[i]} "*) command="\${COMP_WORDS[i]}"; break ;; esac
  done
  case "$prev" in
${valueCases.join('\n')}
  esac
  case "$command" in
${cases.join('\n')}
    *) COMPREPLY=($(compgen -W "${names} --help --version" -- "$cur")) ;;
  esac
  return 0
}
complete -F _penstock penstock
`;
}

function bashArguments({ choices, takesUri, takesPath }: CommandWords): string {
  const words = `$(compgen -W "${choices.join(' ')}" -- "$cur")`;
  if (takesUri)
    return `_penstock_uri "$cur"${choices.length === 0 ? '' : `; COMPREPLY+=(${words})`}`;
  if (!takesPath) return `COMPREPLY=(${words})`;
  return `compopt -o filenames 2>/dev/null; COMPREPLY=(${words} $(compgen -f -- "$cur"))`;
}

function bashValue(option: OptionWords): string {
  if (option.choices.length > 0) {
    return `COMPREPLY=($(compgen -W "${option.choices.join(' ')}" -- "$cur"))`;
  }
  if (option.takesFile) {
    return 'compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$cur"))';
  }
  return ':';
}

export function zshScript(
  commands: readonly CommandWords[],
  schemes: Readonly<Record<string, string>>,
): string {
  const described = commands.map((command) => `    ${quote(`${command.name}:${command.help}`)}`);
  const cases = commands.map((command) => {
    const options = command.options.map((option) => `        ${quote(zshOption(option))}`);
    const specs = [...options, ...zshArguments(command).map((spec) => `        ${quote(spec)}`)];
    return `    ${command.name})\n      _arguments \\\n${specs.join(' \\\n')}\n      ;;`;
  });
  const uris = Object.entries(schemes).map(([name, help]) => `    ${quote(`${name}:${help}`)}`);
  return `#compdef penstock
# zsh completion for penstock
_penstock_uri() {
  local -a schemes
  schemes=(
${uris.join('\n')}
  )
  if compset -P 'file:'; then
    _files
  else
    _describe -t schemes 'scheme' schemes -S ':'
  fi
}
_penstock() {
  local -a commands
  commands=(
${described.join('\n')}
  )
  if (( CURRENT == 2 )); then
    _describe -t commands 'command' commands
    return
  fi
  local command=$words[2]
  shift words
  (( CURRENT-- ))
  case $command in
${cases.join('\n')}
  esac
}
if [ "$funcstack[1]" = "_penstock" ]; then _penstock "$@"; else compdef _penstock penstock; fi
`;
}

function zshArguments({ choices, takesUri, takesPath }: CommandWords): string[] {
  const words = choices.join(' ');
  if (takesUri && words === '') return ['*:uri:_penstock_uri'];
  if (takesUri) return [`*:uri:{ _penstock_uri; compadd -- ${words} }`];
  return [...(words === '' ? [] : [`1:word:(${words})`]), ...(takesPath ? ['*:file:_files'] : [])];
}

/**
 * `--bs=[bytes per operation]:bs:` in _arguments' language, where brackets and colons mean things.
 */
function zshOption(option: OptionWords): string {
  const help = option.help.replace(/[[\]\\:]/g, '\\$&');
  if (!option.takesValue) return `${option.flag}[${help}]`;
  const action =
    option.choices.length > 0 ? `(${option.choices.join(' ')})` : option.takesFile ? '_files' : ' ';
  return `${option.flag}=[${help}]:value:${action}`;
}

export function fishScript(
  commands: readonly CommandWords[],
  schemes: Readonly<Record<string, string>>,
): string {
  const names = commands.map((command) => command.name).join(' ');
  const lines = ['# fish completion for penstock', 'complete -c penstock -f'];
  for (const command of commands) {
    const without = quote(`not __fish_seen_subcommand_from ${names}`);
    lines.push(`complete -c penstock -n ${without} -a ${command.name} -d ${quote(command.help)}`);
  }
  for (const command of commands) {
    const within = quote(`__fish_seen_subcommand_from ${command.name}`);
    for (const option of command.options) {
      const long = option.flag.replace(/^--/, '');
      let line = `complete -c penstock -n ${within} -l ${long} -d ${quote(option.help)}`;
      if (option.choices.length > 0) line += ` -x -a ${quote(option.choices.join(' '))}`;
      else if (option.takesFile) line += ' -r -F';
      else if (option.takesValue) line += ' -x';
      lines.push(line);
    }
    if (command.choices.length > 0) {
      lines.push(`complete -c penstock -n ${within} -a ${quote(command.choices.join(' '))}`);
    }
    if (command.takesPath) lines.push(`complete -c penstock -n ${within} -F`);
    if (!command.takesUri) continue;
    for (const [scheme, help] of Object.entries(schemes)) {
      lines.push(`complete -c penstock -n ${within} -a ${scheme}: -d ${quote(help)}`);
    }
  }
  return `${lines.join('\n')}\n`;
}

/** For all three shells: a single-quoted word. */
function quote(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
