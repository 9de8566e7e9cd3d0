/**
 * Moves an address with commands of one's own (a cloud's API, a routing daemon), without a shell. Options:
 *
 *     take: [program, argument, ...]
 *     renew: [...]      # without it: `take` again where that has {lifetime}, else nothing
 *     drop: [...]       # must succeed when the address is not here
 *     announce: [...]   # without it: nothing
 *     timeout: 10000    # ms for each
 *
 * In the arguments `{address}` is the address, and `{lifetime}` for how many seconds the host may have it, rounded down (one at
 * least), or `forever`. A command that exits with 0 says that it is done.
 *
 * What it does not do by itself: keep to a lifetime. That is up to the commands; where they do not, the guard (nftables) or the network
 * must keep a host silent that lost its term.
 */

import { type AddressPlugin, CodedError, type PluginContext, type PluginModule } from '../../core/contract/index.js';

const COMMANDS = ['take', 'renew', 'drop', 'announce'] as const;
type Name = (typeof COMMANDS)[number];

const plugin: PluginModule = {
  name: 'address-command',
  contract: '1.0.0',
  kind: 'address',
  /** Rejects with OUTLIVE_PLUGIN_OPTIONS. */
  async create(given: unknown, context: PluginContext): Promise<AddressPlugin> {
    const { commands, timeout } = read(given);
    const { address } = context;
    if (address === undefined) throw wrong('address', 'is not told; this plugin moves an address of a pair');
    const run = async (name: Name, lifetime: number | null) => {
      const command = commands[name];
      if (command === undefined) return;
      const seconds = lifetime === null ? 'forever' : String(Math.max(1, Math.floor(lifetime / 1000)));
      const values: Record<string, string> = { address, lifetime: seconds };
      await context.run(
        command.map((word) => word.replace(PLACEHOLDER, (_, key) => values[key])),
        {},
        timeout,
      );
    };
    const limited = commands.take?.some((word) => word.includes('{lifetime}'));
    const renewal = commands.renew !== undefined ? 'renew' : limited ? 'take' : null;
    return {
      take: (lifetime) => run('take', lifetime),
      renew: async (lifetime) => (renewal === null ? undefined : run(renewal, lifetime)),
      drop: () => run('drop', null),
      announce: () => run('announce', null),
    };
  },
};

export default plugin;

// `${address}` is left to a shell that the command itself may be.
const PLACEHOLDER = /(?<!\$)\{(address|lifetime)\}/g;

const DEFAULT_TIMEOUT = 10_000;

function read(given: unknown): { commands: Partial<Record<Name, readonly string[]>>; timeout: number } {
  const { timeout = DEFAULT_TIMEOUT, ...commands } = (given ?? {}) as Record<string, unknown>;
  for (const key of Object.keys(commands)) {
    if (!(COMMANDS as readonly string[]).includes(key)) {
      throw wrong(key, `unknown key; known are ${COMMANDS.join(', ')}, timeout`);
    }
  }
  for (const name of COMMANDS) {
    const command = commands[name];
    if (command === undefined) {
      if (name === 'take' || name === 'drop')
        throw wrong(name, 'is missing; write the program and its arguments as a list');
      continue;
    }
    const texts = Array.isArray(command) && command.every((word): word is string => typeof word === 'string');
    if (!texts || command.length === 0 || command[0] === '') {
      throw wrong(name, 'must be a list of texts: the program and its arguments (there is no shell)');
    }
    const lifetimes = name === 'take' || name === 'renew';
    for (const word of command as string[]) {
      for (const [, key] of word.matchAll(/(?<!\$)\{([a-z]+)\}/g)) {
        if (key === 'address' || (key === 'lifetime' && lifetimes)) continue;
        throw wrong(name, `{${key}} is unknown; known ${lifetimes ? 'are {address} and {lifetime}' : 'is {address}'}`);
      }
    }
  }
  if (typeof timeout !== 'number' || !(timeout > 0)) throw wrong('timeout', 'must be a number of milliseconds');
  return { commands: commands as Partial<Record<Name, readonly string[]>>, timeout };
}

function wrong(path: string, message: string): CodedError {
  return new CodedError('OUTLIVE_PLUGIN_OPTIONS', 'config', `${path}: ${message}`);
}
