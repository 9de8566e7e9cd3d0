/**
 * An address on a network interface of this Linux host, by `ip` (ip-address(8)). Options:
 *
 *     interface: eth0
 *     prefix: 32        # length; a host's own by default (32 or 128), so that no route comes and goes with the address
 *     margin: 0         # ms that the address is taken away before its lifetime ends, see below
 *     timeout: 2000     # ms for each command
 *
 * With a lifetime the *kernel* takes the address away when it is not renewed, whatever became of the gateway. It counts in
 * whole seconds, so a lifetime is rounded down (to one second at least), and it does so late: 0 to 0.4 s was seen for an only
 * address, and up to 1.25 s is possible where others expire in the same second, as it looks at most once a second
 * (ADDRCONF_TIMER_FUZZ_MAX, net/ipv4/devinet.c and net/ipv6/addrconf.c). Besides, established sockets of an IPv6 address, and
 * IPv4 ones with IP_TRANSPARENT, go on sending after it is gone. Exact to the millisecond is the guard (nftables) alone, which the
 * gateway installs where it can. Where it cannot, set `margin: 1250`, with terms of 5 s or more.
 *
 * IPv6 addresses are set without duplicate address detection (the old owner may still be there) and deprecated, so that this host
 * does not choose them for connections of its own.
 */

import { z } from 'zod';
import { type AddressPlugin, CodedError, type PluginContext, type PluginModule } from '../../core/contract/index.js';

const Options = z.strictObject({
  // What a kernel takes (dev_valid_name in net/core/dev.c), without what `ip` could take for an option.
  interface: z.string().regex(/^(?!\.\.?$)[^\s/:-][^\s/:]{0,14}$/, 'is no name of a network interface'),
  prefix: z.number().int().min(1).max(128).optional(),
  margin: z.number().min(0).max(60_000).default(0),
  timeout: z.number().positive().default(2000),
});

const plugin: PluginModule = {
  name: 'address-ip',
  contract: '1.0.0',
  kind: 'address',
  /** Rejects with OUTLIVE_PLUGIN_OPTIONS. */
  async create(given: unknown, context: PluginContext): Promise<AddressPlugin> {
    const parsed = Options.safeParse(given ?? {});
    if (!parsed.success) {
      const [{ path, message }] = parsed.error.issues;
      throw wrong(path.join('.') || 'options', message);
    }
    const { interface: device, margin, timeout } = parsed.data;
    const { address, announce } = context;
    if (address === undefined) throw wrong('address', 'is not told; this plugin moves an address of a pair');
    const six = address.includes(':');
    const longest = six ? 128 : 32;
    const { prefix = longest } = parsed.data;
    if (prefix > longest) throw wrong('prefix', `must be at most ${longest} for ${address}`);

    const run = (words: string[]) => context.run(['ip', six ? '-6' : '-4', ...words], {}, timeout);
    const set = (lifetime: number | null) => {
      const seconds = lifetime === null ? 'forever' : String(Math.max(1, Math.floor((lifetime - margin) / 1000)));
      const words = ['addr', 'replace', `${address}/${prefix}`, 'dev', device, 'valid_lft', seconds];
      return run([...words, 'preferred_lft', six ? '0' : seconds, ...(six ? ['nodad'] : [])]);
    };
    return {
      async take(lifetime) {
        await set(lifetime);
      },
      async renew(lifetime) {
        await set(lifetime);
      },
      async drop() {
        try {
          await run(['addr', 'del', `${address}/${prefix}`, 'dev', device]);
        } catch (error) {
          // How `ip` says that it is not there differs between versions.
          const { stdout } = await run(['-o', 'addr', 'show', 'dev', device, 'to', `${address}/${longest}`]);
          if (stdout.trim() !== '') throw error;
        }
      },
      async announce() {
        if (announce === undefined) {
          const message = `the gateway cannot tell the neighbours of ${device} that ${address} is here`;
          throw new CodedError('OUTLIVE_ADDRESS_ANNOUNCE', 'system', message);
        }
        await announce(address, device);
      },
    };
  },
};

export default plugin;

function wrong(path: string, message: string): CodedError {
  return new CodedError('OUTLIVE_PLUGIN_OPTIONS', 'config', `${path}: ${message}`);
}
