import { type ActionPlugin, CodedError, type PluginContext, type PluginModule } from '../../core/contract/index.js';

interface Options {
  readonly command: readonly string[];
  readonly timeout: number;
  readonly env: Readonly<Record<string, string>>;
}

/**
 * Promotes or fences a server by running a command, without a shell. `{server}`, `{host}` and `{port}` in the arguments are replaced;
 * the same is in the environment as `OUTLIVE_SERVER`, `OUTLIVE_HOST` and `OUTLIVE_PORT`. The command must exit with 0 only when it is
 * certain that the server is promoted or can no longer act.
 */
const plugin: PluginModule = {
  name: 'command',
  contract: '1.0.0',
  // It serves promotion and fencing alike: both act on a server.
  kind: 'promote',
  async create(given: unknown, context: PluginContext): Promise<ActionPlugin> {
    const options = read(given);
    return {
      async act(server, { host, port }) {
        const values: Record<string, string> = { server, host, port: String(port) };
        const command = options.command.map((word) => word.replace(PLACEHOLDER, (_, key) => values[key]));
        context.log.info({ server, command: command[0] }, 'running the command');
        const env = { ...options.env, OUTLIVE_SERVER: server, OUTLIVE_HOST: host, OUTLIVE_PORT: String(port) };
        const { stderr } = await context.run(command, env, options.timeout);
        context.log.info({ server, command: command[0], stderr: stderr.slice(-500) }, 'the command succeeded');
      },
    };
  },
};

export default plugin;

// `${host}` is left to a shell that the command itself may be.
const PLACEHOLDER = /(?<!\$)\{(server|host|port)\}/g;

const DEFAULT_TIMEOUT = 30_000;

function read(given: unknown): Options {
  const { command, timeout = DEFAULT_TIMEOUT, env = {}, ...rest } = (given ?? {}) as Record<string, unknown>;
  for (const key of Object.keys(rest)) throw wrong(key, 'unknown key; known are command, timeout, env');
  if (command === undefined) throw wrong('command', 'is missing; write the program and its arguments as a list');
  if (!isTexts(command) || command.length === 0 || command[0] === '') {
    throw wrong('command', 'must be a list of texts: the program and its arguments (there is no shell)');
  }
  for (const word of command) {
    const unknown = /(?<!\$)\{(?!(?:server|host|port)\})([a-z]+)\}/.exec(word);
    if (unknown !== null) throw wrong('command', `{${unknown[1]}} is unknown; known are {server}, {host} and {port}`);
  }
  if (typeof timeout !== 'number' || !(timeout > 0)) throw wrong('timeout', 'must be a number of milliseconds');
  if (typeof env !== 'object' || env === null || !isTexts(Object.values(env))) {
    throw wrong('env', 'must be a mapping of names to texts');
  }
  return { command, timeout, env: env as Record<string, string> };
}

function isTexts(value: unknown): value is string[] {
  return Array.isArray(value) && value.every((item) => typeof item === 'string');
}

function wrong(path: string, message: string): CodedError {
  return new CodedError('OUTLIVE_PLUGIN_OPTIONS', 'config', `${path}: ${message}`);
}
