// `penstock completion bash|zsh|fish`: a completion script for the shell, made from the command
// tree itself, so that it cannot know options that the program does not have. The script is static:
// a key press starts no process.

import { type Command, Option } from 'commander';
import { PenstockError } from '../errors.js';
import { nearest } from '../units.js';
import { bashScript, fishScript, zshScript } from './completion-scripts.js';
import { Exit, printJson, printText } from './output.js';
import { type Finish, buildProgram } from './program.js';
import { SCHEMES } from './schemes.js';

export interface OptionWords {
  /** `--bs`. */
  readonly flag: string;
  readonly help: string;
  readonly takesValue: boolean;
  readonly takesFile: boolean;
  readonly choices: readonly string[];
}

export interface CommandWords {
  readonly name: string;
  readonly help: string;
  readonly options: readonly OptionWords[];
  /** What its arguments may be: words, and schemes of URIs. */
  readonly choices: readonly string[];
  readonly takesUri: boolean;
  /** It has an argument that is a path. */
  readonly takesPath: boolean;
}

const SHELLS: Readonly<Record<string, (commands: readonly CommandWords[]) => string>> = {
  bash: (commands) => bashScript(commands, Object.keys(SCHEMES)),
  zsh: (commands) => zshScript(commands, SCHEMES),
  fish: (commands) => fishScript(commands, SCHEMES),
};

export function configure(command: Command, finish: Finish): void {
  const shells = Object.keys(SHELLS);
  command
    .argument('<shell>', shells.join(', '))
    .addHelpText('after', '\nbash:  source <(penstock completion bash)')
    .action(async (shell: string, options: { json?: boolean }) => {
      const script = SHELLS[shell];
      if (script === undefined) {
        const near = nearest(shell, shells);
        throw new PenstockError(
          'BAD_OPTION',
          `no completion for '${shell}'; did you mean ${near}?`,
          {
            hint: `Shells: ${shells.join(', ')}.`,
            exitCode: Exit.USAGE,
          },
        );
      }
      const text = script(commandWords(await buildProgram('all', () => undefined)));
      if (options.json === true) printJson('completion', { shell, script: text });
      else printText(text);
      finish(Exit.OK);
    });
}

/** The command tree as the scripts need it. */
export function commandWords(program: Command): CommandWords[] {
  return program.commands.map((command) => {
    // A command of commands offers their names, and the options of any of them.
    const all = [command, ...command.commands];
    const options = all.flatMap((each) => each.options);
    return {
      name: command.name(),
      help: command.description(),
      options: [...options, new Option('--help', 'show help')]
        .filter((option) => !option.hidden)
        .map(optionWords)
        .filter(({ flag }, index, list) => list.findIndex((each) => each.flag === flag) === index),
      choices:
        command.name() === 'completion'
          ? Object.keys(SHELLS)
          : command.commands.map((each) => each.name()),
      takesUri: all.some((each) => each.registeredArguments[0]?.name() === 'uri'),
      takesPath: all.some((each) => each.registeredArguments[0]?.name() === 'socket'),
    };
  });
}

function optionWords(option: Option): OptionWords {
  return {
    flag: option.long ?? option.flags,
    help: option.description,
    takesValue: option.required || option.optional,
    takesFile: /<(?:file|socket)>/i.test(option.flags),
    choices: option.argChoices ?? [],
  };
}
