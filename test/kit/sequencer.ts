import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** Files whose tests make hosts of network namespaces: two database servers, two gateways and their clients keep all processors busy. */
const LABS = /\/(takeover-[^/]+|demo-pair)\.test\.ts$/;
/** None of them comes last, so that no worker waits long for the other one in the end. */
const SPREAD_OVER = 0.9;

/** Spreads the files that make labs over the run, so that two of them seldom run at a time. */
export class Sequencer extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const sorted = await super.sort(files);
    const labs = sorted.filter(({ moduleId }) => LABS.test(moduleId));
    const all = sorted.filter(({ moduleId }) => !LABS.test(moduleId));
    const step = (SPREAD_OVER * sorted.length) / Math.max(1, labs.length);
    for (const [index, lab] of labs.entries()) all.splice(Math.round(index * step), 0, lab);
    return all;
  }
}
