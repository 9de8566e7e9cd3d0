import { createRequire } from 'node:module';
import { dirname, isAbsolute, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import {
  type ActionPlugin,
  type AddressPlugin,
  CONTRACT_VERSION,
  type Codec,
  CodedError,
  type CredentialsPlugin,
  type LeasePlugin,
  type PluginContext,
  type PluginModule,
} from '../contract/index.js';
import type { ClusterConfig, Config, PluginUse } from './config/index.js';
import { ConfigError, type Problem } from './config/index.js';

/** What a plugin is wanted for. A plugin made for one action may serve the other: both act on a server. */
export type PluginRole = PluginModule['kind'];

/** The codecs and plugins that a configuration asks for, loaded and checked. */
export interface Extensions {
  /** The codec of a listener, by the listener's name. */
  readonly codecs: ReadonlyMap<string, Codec>;
  /** Plugin modules by where the configuration asks for them (`PluginUse.path`). */
  readonly plugins: ReadonlyMap<string, PluginModule>;
}

/** Loads a codec by built-in name, npm package name, or path relative to `baseDir`. */
export async function loadCodec(name: string, baseDir: string): Promise<Codec> {
  const found = await load('codec', 'codecs', name, baseDir);
  checkShape('codec', name, found, CODEC_SHAPE);
  const codec = found as unknown as Codec;
  const needs: Record<string, string> = {};
  if (codec.capabilities.probe) needs.probe = 'function';
  if (codec.capabilities.outcome) needs.resolve = 'function';
  checkShape('codec', name, found, needs);
  checkContract('codec', name, codec.contract);
  return codec;
}

/** Loads a plugin by built-in name, npm package name, or path relative to `baseDir`, for a role. */
export async function loadPlugin(name: string, role: PluginRole, baseDir: string): Promise<PluginModule> {
  const found = await load('plugin', 'plugins', name, baseDir);
  checkShape('plugin', name, found, PLUGIN_SHAPE);
  const plugin = found as unknown as PluginModule;
  checkContract('plugin', name, plugin.contract);
  const acts = plugin.kind === 'promote' || plugin.kind === 'fence';
  const roles: PluginRole[] = acts ? ['promote', 'fence'] : [plugin.kind];
  if (!KINDS.includes(plugin.kind) || !roles.includes(role)) {
    throw wrongShape('plugin', name, `its kind is ${JSON.stringify(plugin.kind)}, and one for ${role} is wanted`);
  }
  return plugin;
}

/** Loads everything that a configuration asks for, and refuses what does not go together with it. */
export async function loadExtensions(config: Config): Promise<Extensions> {
  const codecs = new Map<string, Codec>();
  const plugins = new Map<string, PluginModule>();
  const want = async (use: PluginUse | null, role: PluginRole) => {
    if (use !== null) plugins.set(use.path, await loadPlugin(use.plugin, role, config.baseDir));
  };
  for (const listener of config.listeners) {
    codecs.set(listener.name, await loadCodec(listener.codec, config.baseDir));
    await want(listener.credentials, 'credentials');
  }
  for (const cluster of config.clusters) {
    await want(cluster.promotion, 'promote');
    await want(cluster.fence, 'fence');
  }
  const { pair } = config;
  if (pair !== null) {
    await want(pair.lease, 'lease');
    await want(pair.fence, 'fence');
    for (const { mover } of pair.addresses) await want(mover, 'address');
  }
  const problems = mismatches(config, codecs);
  if (problems.length > 0) {
    throw new ConfigError('OUTLIVE_CONFIG_INVALID', config.file ?? 'configuration', problems);
  }
  return { codecs, plugins };
}

/**
 * Starts a loaded plugin with its options from the configuration. Errors say where in the configuration it stands.
 *
 * @typeParam T what its role makes it: `CredentialsPlugin`, `ActionPlugin`, `LeasePlugin` or `AddressPlugin`
 */
export async function startPlugin<T extends CredentialsPlugin | ActionPlugin | LeasePlugin | AddressPlugin>(
  extensions: Extensions,
  use: PluginUse,
  context: PluginContext,
): Promise<T> {
  const module = extensions.plugins.get(use.path)!;
  try {
    return (await module.create(use.options, context)) as T;
  } catch (error) {
    const where = `${use.path} (plugin ${module.name})`;
    if (error instanceof CodedError) {
      throw new CodedError(error.code, error.culprit, `${where}: ${error.message}`, { cause: error });
    }
    const message = `${where}: it failed to start: ${error instanceof Error ? error.message : String(error)}`;
    throw new CodedError('OUTLIVE_PLUGIN_LOAD', 'plugin', message, { cause: error });
  }
}

function mismatches(config: Config, codecs: ReadonlyMap<string, Codec>): Problem[] {
  const problems: Problem[] = [];
  const wrong = (path: string, message: string) => problems.push({ path, line: null, column: null, message });
  config.listeners.forEach((listener, index) => {
    const codec = codecs.get(listener.name)!;
    if (!codec.authMethods.includes(listener.auth)) {
      const message = `the codec ${codec.name} does not know ${JSON.stringify(listener.auth)}; it knows ${codec.authMethods.join(', ')}`;
      wrong(`listeners[${index}].auth`, message);
    }
    const { by, table } = listener.outcome;
    const path = `listeners[${index}].outcome`;
    if (by === 'position' && !codec.capabilities.outcome) {
      wrong(
        `${path}.by`,
        `the codec ${codec.name} cannot ask a server for the outcome of a commit; use marker, or none`,
      );
    }
    if (by === 'marker' && codec.markers === undefined) {
      wrong(`${path}.by`, `the codec ${codec.name} leaves no rows; use position, or none`);
    }
    const fault = by === 'marker' && table !== null ? (codec.markers?.wrongTable(table) ?? null) : null;
    if (fault !== null) wrong(`${path}.table`, fault);
  });
  config.clusters.forEach((cluster, index) => {
    const path = `clusters[${index}]`;
    const used = codecsOf(cluster, config, codecs);
    if (used.length > 1) {
      const names = used.map((codec) => codec.name).join(' and ');
      wrong(path, `its listeners speak ${names}; a cluster speaks one protocol, give each its own cluster`);
    }
    for (const { name, capabilities } of used) {
      if (cluster.monitor !== null && !capabilities.probe) {
        wrong(`${path}.monitor`, `the codec ${name} cannot ask a server for its role; leave the monitor out`);
      }
      if (cluster.spares.perIdentity > 0 && !capabilities.login) {
        wrong(`${path}.spares`, `the codec ${name} cannot log in on its own; leave the spares out`);
      }
    }
  });
  return problems;
}

/** The different codecs of the listeners of a cluster. */
export function codecsOf(cluster: ClusterConfig, config: Config, codecs: ReadonlyMap<string, Codec>): Codec[] {
  const users = config.listeners.filter((listener) => listener.cluster === cluster.name);
  return [...new Set(users.map((listener) => codecs.get(listener.name)!))];
}

// --------------------------------------------------------------------------------------------------------------- loading

const HERE = dirname(fileURLToPath(import.meta.url));
// Built-in ones are loaded beside this file, compiled or not.
const EXTENSION = import.meta.url.endsWith('.ts') ? 'ts' : 'js';

async function load(what: string, folder: string, name: string, baseDir: string): Promise<Record<string, unknown>> {
  let file: string;
  try {
    file = locate(folder, name, baseDir);
  } catch (error) {
    const ways = `a built-in name, an installed npm package, or a path that starts with "./"`;
    throw failedToLoad(what, name, `it was not found (looked from ${baseDir}); name ${ways}`, error);
  }
  let module: Record<string, unknown>;
  try {
    module = (await import(/* @vite-ignore */ pathToFileURL(file).href)) as Record<string, unknown>;
  } catch (error) {
    throw failedToLoad(what, name, `${file} failed: ${error instanceof Error ? error.message : String(error)}`, error);
  }
  const main = module.default as Record<string, unknown> | undefined;
  // A CommonJS package compiled from ES modules carries its default export one level deeper.
  const value = main?.__esModule ? main.default : main;
  if (typeof value !== 'object' || value === null) {
    throw wrongShape(what, name, `${file} has no default export that is an object`);
  }
  return value as Record<string, unknown>;
}

/** The file behind a name. Throws when there is none. */
function locate(folder: string, name: string, baseDir: string): string {
  if (/^\.{1,2}[\\/]/.test(name) || isAbsolute(name)) {
    return createRequire(join(baseDir, 'outlive.yaml')).resolve(resolve(baseDir, name));
  }
  if (/^[a-z0-9-]+$/.test(name)) {
    try {
      return createRequire(import.meta.url).resolve(join(HERE, '..', '..', folder, name, `index.${EXTENSION}`));
    } catch {
      // Not built in: a package of that name.
    }
  }
  try {
    return locatePackage(name, baseDir);
  } catch (error) {
    try {
      return locatePackage(name, HERE);
    } catch {
      throw error;
    }
  }
}

/**
 * The file of a package as an `import` from `directory` would find it. Node resolves only from the importing file, which is this one,
 * but packages stand beside the configuration.
 */
function locatePackage(name: string, directory: string): string {
  const require = createRequire(join(directory, 'outlive.yaml'));
  const [, packageName, rest] = /^((?:@[^/]+\/)?[^/]+)(\/.*)?$/.exec(name) ?? [];
  for (const modules of require.resolve.paths(name) ?? []) {
    const root = join(modules, packageName);
    let description: { exports?: unknown };
    try {
      description = require(join(root, 'package.json')) as { exports?: unknown };
    } catch {
      continue;
    }
    const target = exported(description.exports, `.${rest ?? ''}`);
    if (target !== null) return require.resolve(join(root, target));
    break;
  }
  return require.resolve(name);
}

/** What `exports` of a package.json says to an `import` of `entry`; null when it says nothing that is plain. */
function exported(exports: unknown, entry: string): string | null {
  if (typeof exports === 'string') return entry === '.' ? exports : null;
  if (Array.isArray(exports)) return exports.map((item) => exported(item, entry)).find((item) => item !== null) ?? null;
  if (typeof exports !== 'object' || exports === null) return null;
  const map = exports as Record<string, unknown>;
  if (Object.keys(map).some((key) => key.startsWith('.'))) return exported(map[entry], '.');
  const condition = Object.keys(map).find((key) => ['import', 'node', 'module-sync', 'default'].includes(key));
  return entry === '.' && condition !== undefined ? exported(map[condition], entry) : null;
}

// --------------------------------------------------------------------------------------------------------------- checking

const KINDS: readonly string[] = ['credentials', 'promote', 'fence', 'lease', 'address'];

/** Required members and their types; `list`, `port` and the like are checked by {@link fits}. */
const CODEC_SHAPE: Record<string, string> = {
  name: 'text',
  contract: 'text',
  defaultPort: 'number',
  capabilities: 'capabilities',
  authMethods: 'texts',
  unprotected: 'texts',
  alpn: 'text or null',
  frameLength: 'function',
  greet: 'function',
  login: 'function',
  refuse: 'function',
  session: 'function',
};

const PLUGIN_SHAPE: Record<string, string> = { name: 'text', contract: 'text', kind: 'text', create: 'function' };

function fits(value: unknown, type: string): boolean {
  switch (type) {
    case 'text':
      return typeof value === 'string' && value !== '';
    case 'text or null':
      return value === null || typeof value === 'string';
    case 'texts':
      return Array.isArray(value) && value.every((item) => typeof item === 'string');
    case 'capabilities':
      return (
        typeof value === 'object' &&
        value !== null &&
        ['login', 'state', 'outcome', 'comparison', 'probe', 'mutables'].every(
          (key) => typeof (value as Record<string, unknown>)[key] === 'boolean',
        )
      );
    default:
      return typeof value === type;
  }
}

function checkShape(what: string, name: string, value: Record<string, unknown>, shape: Record<string, string>): void {
  const wrong = Object.entries(shape).filter(([key, type]) => !fits(value[key], type));
  if (wrong.length === 0) return;
  const members = wrong.map(([key, type]) => `${key} (${type})`).join(', ');
  throw wrongShape(what, name, `these members are missing or of the wrong type: ${members}`);
}

function checkContract(what: string, name: string, version: string): void {
  const [major, minor] = CONTRACT_VERSION.split('.').map(Number);
  const stated = /^(\d+)\.(\d+)\.(\d+)$/.exec(version);
  if (stated !== null && Number(stated[1]) === major && Number(stated[2]) <= minor) return;
  const message =
    stated === null
      ? `states the contract version ${JSON.stringify(version)}, which is not of the form 1.0.0`
      : `was built for version ${version} of the contract, and this Outlive offers ${CONTRACT_VERSION}`;
  throw new CodedError(
    'OUTLIVE_PLUGIN_CONTRACT',
    'plugin',
    `The ${what} ${JSON.stringify(name)} ${message}. Install a version of it, or of Outlive, that goes with the other.`,
  );
}

function failedToLoad(what: string, name: string, reason: string, cause: unknown): CodedError {
  return new CodedError(
    'OUTLIVE_PLUGIN_LOAD',
    'plugin',
    `The ${what} ${JSON.stringify(name)} cannot be loaded: ${reason}`,
    {
      cause,
    },
  );
}

function wrongShape(what: string, name: string, reason: string): CodedError {
  return new CodedError(
    'OUTLIVE_PLUGIN_SHAPE',
    'plugin',
    `${JSON.stringify(name)} is not a ${what} for Outlive: ${reason}.`,
  );
}
