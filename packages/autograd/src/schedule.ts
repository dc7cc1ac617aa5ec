/**
 * Learning-rate schedules: functions from the step (from 0) to a factor of the base rate, with linear warmup, as in
 * Hugging Face's `get_{constant,linear,cosine}_schedule_with_warmup`.
 */
export type Schedule = (step: number) => number;

export interface ScheduleOptions {
  /** Steps of linear growth from 0. */
  warmupSteps: number;
  /** Steps in all. */
  totalSteps: number;
}

const warm = ({ warmupSteps }: ScheduleOptions, after: Schedule): Schedule => {
  return (step) => (step < warmupSteps ? step / Math.max(1, warmupSteps) : after(step));
};

const progress = (step: number, { warmupSteps, totalSteps }: ScheduleOptions): number =>
  Math.min(1, (step - warmupSteps) / Math.max(1, totalSteps - warmupSteps));

export const constantSchedule = (options: ScheduleOptions): Schedule => warm(options, () => 1);

/** Falls to 0 in a straight line. */
export const linearSchedule = (options: ScheduleOptions): Schedule => {
  const { warmupSteps, totalSteps } = options;
  return warm(options, (step) => Math.max(0, (totalSteps - step) / Math.max(1, totalSteps - warmupSteps)));
};

/** Falls to 0 along half a cosine, and stays there (Hugging Face's would rise again). */
export const cosineSchedule = (options: ScheduleOptions): Schedule =>
  warm(options, (step) => Math.max(0, 0.5 * (1 + Math.cos(Math.PI * progress(step, options)))));

/** The schedules by name, for configuration files. */
export const schedules = { constant: constantSchedule, linear: linearSchedule, cosine: cosineSchedule };
export type ScheduleName = keyof typeof schedules;
