import { describe, expect, it } from 'vitest';
import type { AddressPlugin, PluginContext, PluginModule } from '../../core/contract/index.js';
import addressCommand from '../../plugins/address-command/index.js';
import addressIp from '../../plugins/address-ip/index.js';
import addressNone from '../../plugins/address-none/index.js';
import etcd from '../../plugins/etcd/index.js';

const endpoints = ['http://127.0.0.1:2379'];
const prefix = '/outlive/a/';

/** A context that notes what is run. */
function context(address?: string): { context: PluginContext; ran: unknown[][] } {
  const ran: unknown[][] = [];
  const silent = () => {};
  return {
    ran,
    context: {
      log: { debug: silent, info: silent, warn: silent, error: silent },
      signal: new AbortController().signal,
      ask: async () => {
        throw new Error('not here');
      },
      run: async (...call) => {
        ran.push(call);
        return { stdout: '', stderr: '' };
      },
      readFile: async () => '',
      address,
    },
  };
}

async function refusal(plugin: PluginModule, options: unknown, address = '10.0.0.9'): Promise<string> {
  const error: unknown = await plugin.create(options, context(address).context).catch((reason: unknown) => reason);
  expect(error).toMatchObject({ code: 'OUTLIVE_PLUGIN_OPTIONS', culprit: 'config' });
  return (error as Error).message;
}

describe('options of the plugins of a pair', () => {
  it.each([
    [{ prefix }, /^endpoints: /],
    [{ endpoints: [], prefix }, /^endpoints: /],
    [{ endpoints: ['127.0.0.1:2379'], prefix }, /^endpoints\.0: write http\(s\):\/\/host:port/],
    [{ endpoints: ['http://a:1', 'https://a:1'], prefix }, /^endpoints: must be all http or all https/],
    [{ endpoints }, /^prefix: /],
    [{ endpoints, prefix: 'outlive' }, /^prefix: must begin and end with a slash/],
    [{ endpoints, prefix, ttl: 1000 }, /^ttl: must be at least 2000/],
    [{ endpoints, prefix, ttl: 2500 }, /^ttl: must be whole seconds/],
    [{ endpoints, prefix, tls: { ca: 'x' } }, /^tls: is for https endpoints/],
    [{ endpoints: ['https://[::1]:1'], prefix, tls: { cert: 'x' } }, /^tls: cert and key belong together/],
    [{ endpoints, prefix, auth: { user: 'a', password: 'b' } }, /^auth/],
    [{ endpoints, prefix, tttl: 3 }, /tttl/],
  ])('etcd refuses %j', async (options, message) => {
    expect(await refusal(etcd, options)).toMatch(message);
  });

  it.each([
    [{}, /^interface: /],
    [{ interface: 'eth0', mask: 24 }, /mask/],
    [{ interface: '-6' }, /^interface: is no name of a network interface/],
    [{ interface: 'a/b' }, /^interface: /],
    [{ interface: 'much-too-long-name' }, /^interface: /],
    [{ interface: 'eth0', prefix: 64 }, /^prefix: must be at most 32 for 10\.0\.0\.9/],
    [{ interface: 'eth0', timeout: 0 }, /^timeout: /],
    [{ interface: 'eth0', margin: -1 }, /^margin: /],
  ])('address-ip refuses %j', async (options, message) => {
    expect(await refusal(addressIp, options)).toMatch(message);
  });

  it.each([
    [{}, 'take: is missing; write the program and its arguments as a list'],
    [{ take: ['x'] }, 'drop: is missing; write the program and its arguments as a list'],
    [{ take: 'x', drop: ['x'] }, 'take: must be a list of texts: the program and its arguments (there is no shell)'],
    [{ take: ['x', '{adress}'], drop: ['x'] }, 'take: {adress} is unknown; known are {address} and {lifetime}'],
    [{ take: ['x'], drop: ['x', '{lifetime}'] }, 'drop: {lifetime} is unknown; known is {address}'],
    [{ take: ['x'], drop: ['x'], timeout: '1s' }, 'timeout: must be a number of milliseconds'],
    [{ take: ['x'], drop: ['x'], fence: ['x'] }, 'fence: unknown key; known are take, renew, drop, announce, timeout'],
  ])('address-command refuses %j', async (options, message) => {
    expect(await refusal(addressCommand, options)).toBe(message);
  });

  it('address-none refuses any, and those that move an address want one', async () => {
    expect(await refusal(addressNone, { interface: 'eth0' })).toBe('interface: there are no options');
    const none = context().context;
    await expect(addressIp.create({ interface: 'eth0' }, none)).rejects.toThrow('address: is not told');
    await expect(addressCommand.create({ take: ['x'], drop: ['x'] }, none)).rejects.toThrow('address: is not told');
  });
});

describe('address-command', () => {
  async function start(options: Record<string, unknown>) {
    const { context: given, ran } = context('10.0.0.9');
    return { ran, mover: (await addressCommand.create(options, given)) as AddressPlugin };
  }

  it('replaces what stands in braces', async () => {
    const { ran, mover } = await start({
      take: ['t', '{address}/32', '{lifetime}', `$${'{address}'}`],
      drop: ['d', '{address}'],
      announce: ['a', '{address}'],
      timeout: 500,
    });
    await mover.take(null);
    await mover.take(2999);
    await mover.renew(10);
    await mover.drop();
    await mover.announce();
    expect(ran.map(([command, , timeout]) => [...(command as string[]), timeout])).toEqual([
      ['t', '10.0.0.9/32', 'forever', `$${'{address}'}`, 500],
      ['t', '10.0.0.9/32', '2', `$${'{address}'}`, 500],
      ['t', '10.0.0.9/32', '1', `$${'{address}'}`, 500],
      ['d', '10.0.0.9', 500],
      ['a', '10.0.0.9', 500],
    ]);
  });

  it('renews with its own command, and not at all where no lifetime is kept', async () => {
    const own = await start({ take: ['t', '{lifetime}'], renew: ['r', '{lifetime}'], drop: ['d'] });
    await own.mover.renew(3000);
    expect(own.ran[0][0]).toEqual(['r', '3']);
    const none = await start({ take: ['t'], drop: ['d'] });
    await none.mover.renew(3000);
    await none.mover.announce();
    expect(none.ran).toEqual([]);
  });
});
